"""An ingest as a user asks for it: check the places, open the source, fill the store, and tell what came of it."""
from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal, cast

import pyarrow.compute as pc
import ray

from pipelines.errors import UserError, is_users_mistake
from pipelines.location import Place, place_of, reach
from pipelines.sources.config import BUILT_IN, TASK_FORMATS, IngestConfig, file_name
from pipelines.sources.importers import IMPORTERS, check_places, open_source, settings_of
from pipelines.sources.index import Dropped, IndexedSource, build_index
from pipelines.sources.record import Source
from pipelines.sources.task_table import MANIFEST, manifest_of, write_task_table
from pipelines.store.ingest import Progress, batch_id_of, demo_sources, ingest
from pipelines.store.quarantine import quarantine_path, read_quarantine
from pipelines.store.table import ImageTextStore

SHOWN = 3
"""Missing images that the report names."""


@dataclass(frozen=True)
class ImportReport:
    """What an ingest did."""

    store: str
    holder: str
    """What holds the rows, in words: a version of the store, or the task table."""
    added: int
    """Rows that this run appended."""
    was_there: bool
    """Whether the store had this batch before."""
    rows: dict[tuple[str, str], int]
    """Rows of the store or table by (source, split)."""
    duplicates: dict[str, int]
    """Copies of pictures that the store's ingest found (its IngestReport says which)."""
    quarantined: dict[str, int]
    """Records of this batch that were refused, by reason."""
    quarantine: str
    """The list of them."""
    missing: list[str]
    """The first few references of records whose image is missing."""
    dropped: Dropped
    """What was left out on purpose, by reason; empty where the store had the batch."""
    seconds: float


def check(config: IngestConfig) -> None:
    """Raise UserError unless a store is named, and the files and folders of the source are there."""
    if not config.data.store:
        raise UserError("data.store is missing: name the store that is filled, data.store=PATH")
    reach(place_of(config.data.store))
    if config.source.format not in BUILT_IN:
        check_places(config.source)


def import_data(config: IngestConfig, progress: Progress | None = None) -> ImportReport:
    """Ingest what `config` names into a store, or a task's data into a task table; Ray must be connected.

    Raises UserError or ValueError for what the user can mend: files that are missing or damaged, too many bad records.
    """
    check(config)
    work = _into_table if config.source.format in TASK_FORMATS else _into_store
    try:
        return work(config, progress)
    except ray.exceptions.RayError as error:
        raise _cause(error) from None


def _into_store(config: IngestConfig, progress: Progress | None) -> ImportReport:
    start = time.monotonic()
    store = place_of(config.data.store)
    sources, dropped, was_there = _sources(config)
    report = ingest(sources, config.data, store, progress)
    batch_id = batch_id_of(sources, config.data)
    rows: Counter[tuple[str, str]] = Counter()
    for batch in ImageTextStore(store).iter_batches(["source", "split"], version=report.version, rows=65_536):
        rows.update(zip(batch["source"].to_pylist(), batch["split"].to_pylist(), strict=True))
    holder = f"version {report.version} of the store"
    return ImportReport(config.data.store, holder, report.added, was_there, dict(rows), report.duplicates,
                        report.quarantined, str(quarantine_path(store) / f"{batch_id}.parquet"),
                        _missing(store, batch_id), dropped, time.monotonic() - start)


def _into_table(config: IngestConfig, progress: Progress | None) -> ImportReport:
    start = time.monotonic()
    table, source = place_of(config.data.store), config.source
    settings = settings_of(source)
    batch_id = batch_id_of([IndexedSource(source.source_name, settings, "", (), 0)], config.data)
    # A sub-folder for each annotations file: the same file in another state takes the earlier one's place.
    stem = file_name(source.path).partition(".")[0]
    folder = table / f"{source.format}-{stem}"
    manifest, dropped = manifest_of(folder), Dropped()
    was_there = manifest.get("batch_id") == batch_id
    if not was_there:
        opened, dropped = build_index(IMPORTERS[source.format], source, settings)
        manifest = write_task_table(opened, source.format, batch_id, config.data, folder, progress)
    rows: Counter[tuple[str, str]] = Counter()
    for path in table.glob(f"*/{MANIFEST}"):
        of_file = manifest_of(path.parent)
        rows.update({(of_file["source"], split): count for split, count in of_file["rows"].items()})
    return ImportReport(config.data.store, "the task table", 0 if was_there else sum(manifest["rows"].values()),
                        was_there, dict(rows), {}, manifest["quarantined"],
                        str(quarantine_path(table) / f"{batch_id}.parquet"), _missing(table, batch_id), dropped,
                        time.monotonic() - start)


def told(report: ImportReport) -> list[str]:
    """The report in lines for a person."""
    done = "was there already" if report.was_there else f"added {report.added:,} rows in {report.seconds:.0f} s"
    lines = [f"{report.store}: {done}; {report.holder} holds"]
    lines += [f"  {count:>10,} {source}, {split}" for (source, split), count in sorted(report.rows.items())]
    lines += [f"left out on purpose: {count:,} ({reason})" for reason, count in sorted(report.dropped.items())]
    copies = [f"{count:,} {kind}" for kind, count in report.duplicates.items() if count]
    if copies:
        lines.append(f"copies of pictures: {', '.join(copies)} (docs/data.md says what becomes of them)")
    if report.quarantined:
        lines.append(f"quarantined: {sum(report.quarantined.values()):,}, listed in {report.quarantine}")
        lines += [f"  {count:>10,} {reason}" for reason, count in report.quarantined.items()]
    if report.missing:
        lines.append(f"WARNING: MISSING IMAGES: {report.quarantined['missing file']:,}, such as those of "
                     f"{', '.join(report.missing)}: a model that is trained without them is another model")
    return lines


def _sources(config: IngestConfig) -> tuple[list[Source], Dropped, bool]:
    """The sources, what they leave out, and whether the store has them already; then they are not opened."""
    store = ImageTextStore(place_of(config.data.store))
    if config.source.format in BUILT_IN:
        built_in = cast(Literal["emoji", "scenes"], config.source.format)
        sources = demo_sources(dataclasses.replace(config.data, source=built_in))
        return sources, Dropped(), store.has_batch(batch_id_of(sources, config.data))
    settings = settings_of(config.source)
    closed = IndexedSource(config.source.source_name, settings, "", (), 0)
    if store.has_batch(batch_id_of([closed], config.data)):
        return [closed], Dropped(), True
    source, dropped = open_source(config.source, settings)
    return [source], dropped, False


def _missing(store: Place, batch_id: str) -> list[str]:
    """The first few references of the batch's records whose image is missing."""
    refused = read_quarantine(store, batch_id)
    references: list[str] = refused.filter(pc.equal(refused["reason"], "missing file"))["reference"].to_pylist()
    return references[:SHOWN]


def _cause(error: BaseException) -> BaseException:
    """What our own code raised in a task, without the wrappings of Ray and Ray Data; else the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, Exception) and not isinstance(inner, ray.exceptions.RayTaskError) and (
                is_users_mistake(inner)):
            return UserError(str(inner))
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
