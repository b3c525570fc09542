"""An ingest as a user asks for it: check the places, open the source, fill the store, and tell what came of it."""
from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray

from pipelines.errors import UserError, is_users_mistake
from pipelines.sources.config import IngestConfig
from pipelines.sources.importers import check_places, open_source, settings_of
from pipelines.sources.index import Dropped, IndexedSource
from pipelines.sources.record import Source
from pipelines.store.ingest import Progress, batch_id_of, demo_sources, ingest
from pipelines.store.quarantine import quarantine_path, read_quarantine
from pipelines.store.table import ImageTextStore

SHOWN = 3
"""Missing images that the report names."""


@dataclass(frozen=True)
class ImportReport:
    """What an ingest did."""

    store: str
    version: int
    added: int
    """Rows that this run appended."""
    was_there: bool
    """Whether the store had this batch before."""
    rows: dict[tuple[str, str], int]
    """Rows of the store by (source, split)."""
    quarantined: dict[str, int]
    """Records of this batch that were refused, by reason."""
    quarantine: str
    """The list of them."""
    missing: list[str]
    """The first few references of records whose image is missing."""
    dropped: Dropped
    """What was left out on purpose, by reason; empty where the store had the batch."""
    seconds: float


def import_into_store(config: IngestConfig, progress: Progress | None = None) -> ImportReport:
    """Ingest what `config` names into its store; Ray must be connected.

    Raises UserError or ValueError for what the user can mend: files that are missing or damaged, too many bad records.
    """
    start = time.monotonic()
    store = config.data.store
    if not store:
        raise UserError("data.store is missing: name the store that is filled, data.store=PATH")
    try:
        sources, dropped, was_there = _sources(config, store)
        report = ingest(sources, config.data, _place(store), progress)
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    batch_id = batch_id_of(sources, config.data)
    quarantine = read_quarantine(_place(store), batch_id)
    missing = quarantine.filter(pc.equal(quarantine["reason"], "missing file"))
    return ImportReport(store, report.version, report.added, was_there, _rows(store, report.version),
                        report.quarantined, str(quarantine_path(_place(store)) / f"{batch_id}.parquet"),
                        missing["reference"].slice(0, SHOWN).to_pylist(), dropped, time.monotonic() - start)


def told(report: ImportReport) -> list[str]:
    """The report in lines for a person."""
    done = "was there already" if report.was_there else f"added {report.added:,} rows in {report.seconds:.0f} s"
    lines = [f"{report.store}: {done}; version {report.version} of the store holds"]
    lines += [f"  {count:>10,} {source}, {split}" for (source, split), count in sorted(report.rows.items())]
    lines += [f"left out on purpose: {count:,} ({reason})" for reason, count in sorted(report.dropped.items())]
    if report.quarantined:
        lines.append(f"quarantined: {sum(report.quarantined.values()):,} records, listed in {report.quarantine}")
        lines += [f"  {count:>10,} {reason}" for reason, count in report.quarantined.items()]
    if report.missing:
        lines.append(f"WARNING: {report.quarantined['missing file']:,} IMAGES ARE MISSING, such as those of "
                     f"{', '.join(report.missing)}: a model that is trained without them is another model")
    return lines


def _sources(config: IngestConfig, store: str) -> tuple[list[Source], Dropped, bool]:
    """The sources, what they leave out, and whether the store has them already; then they are not opened."""
    if config.source.format in ("emoji", "scenes"):
        sources = demo_sources(dataclasses.replace(config.data, source=config.source.format))
        return sources, Dropped(), _has(store, sources, config)
    check_places(config.source)
    settings = settings_of(config.source)
    closed = IndexedSource(config.source.source_name, settings, "", (), 0)
    if _has(store, [closed], config):
        return [closed], Dropped(), True
    source, dropped = open_source(config.source, settings)
    return [source], dropped, False


def _has(store: str, sources: list[Source], config: IngestConfig) -> bool:
    return ImageTextStore(_place(store)).has_batch(batch_id_of(sources, config.data))


def _rows(store: str, version: int) -> dict[tuple[str, str], int]:
    counts: Counter[tuple[str, str]] = Counter()
    for batch in ImageTextStore(_place(store)).iter_batches(["source", "split"], version=version, rows=65_536):
        counts.update(zip(batch["source"].to_pylist(), batch["split"].to_pylist(), strict=True))
    return dict(counts)


def _place(store: str) -> Any:
    return store if "://" in store else Path(store).expanduser().absolute()


def _cause(error: BaseException) -> BaseException:
    """What our own code raised in a task, without the wrappings of Ray and Ray Data; else the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, Exception) and not isinstance(inner, ray.exceptions.RayTaskError) and (
                is_users_mistake(inner)):
            return UserError(str(inner))
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
