"""Ingest: sources -> validated, hashed rows in Parquet files (Ray Data) -> one atomic append to the store.

Every task writes its own files into the store's folder, where nobody sees them before the commit; what comes back to
the driver is names, ids, hashes and refusals, never an image. The batch's id follows from the sources' settings, so the
same ingest again adds nothing; killed at any point, the store is at the version before or the version after.
"""
from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data.context import DataContext

from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.location import Place
from pipelines.sources.emoji import EmojiSource, all_emoji
from pipelines.sources.record import Rejected, Source
from pipelines.sources.scenes import ScenesSource
from pipelines.store.attempts import attempt_at, file_name
from pipelines.store.duplicates import COPY_REASONS, Kept, drop_duplicates, id_hash
from pipelines.store.quarantine import QUARANTINE_SCHEMA, count_reasons, read_quarantine, refusal, write_quarantine
from pipelines.store.schema import STORE_SCHEMA, write_parquet
from pipelines.store.table import ImageTextStore, StoreMoved
from pipelines.store.told import raise_told, told
from pipelines.store.validate import to_row

ROW_FORMAT = 1  # part of the batch's id: another number, and every source is ingested anew
FILE_ROWS = 4096
FILE_BYTES = 128 * 2**20
FEWEST_TASKS = 32
TASKS_A_CPU = 4
"""Where there are parts enough: each task costs the driver .15 MB for as long as it lives."""
ROW_SETTINGS = ("encode", "quality", "short_side", "max_caption", "duplicates")
"""Settings that decide the rows beside `max_pixels`; part of the batch's id where they differ from the defaults, so
that what was ingested before they existed keeps its id."""

WRITTEN_SCHEMA = pa.schema([
    ("part", pa.int64()),
    ("file", pa.string()),
    ("ids", pa.list_(pa.uint64())),
    ("train", pa.list_(pa.bool_())),
    ("classes", pa.list_(pa.int64())),
    ("phashes", pa.list_(pa.uint64())),
    ("refused", pa.list_(pa.struct(list(QUARANTINE_SCHEMA)))),
    ("mistake", pa.string()),
])
"""What a task tells the driver of one written file (an empty name: only refusals); ids, classes and phashes: see
duplicates.py. The driver holds this of all rows, so a row is little. A mistake of the user's, which ends the ingest,
comes as its text: Ray would bury the exception."""

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total) on the driver."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did."""

    version: int
    """The store's version that holds the batch."""
    rows_by_split: dict[str, int]
    """Rows of that version of the store, by split."""
    quarantined: dict[str, int]
    """Records of the batch that were refused, by reason."""
    seconds: float
    added: int
    """Rows that this run appended; 0 where the batch was there already."""
    duplicates: dict[str, int] = field(default_factory=dict)
    """Rows of the batch that show a picture again, kept or not: `exact`, `near`; `leaked`: rows for evaluation whose
    picture the store held for training already."""


def demo_sources(data: DataConfig) -> list[Source]:
    """The built-in sources that `data.source` names; FileNotFoundError where the `demo` extra is not installed."""
    all_emoji()
    sources: list[Source] = []
    if data.source in ("demo", "emoji"):
        sources.append(EmojiSource(data.seed))
    if data.source in ("demo", "scenes"):
        sources.append(ScenesSource(data.scenes, data.scenes_val, data.scene_size, data.seed))
    return sources


def ingest_demo(data: DataConfig, store_path: str | Place, progress: Progress | None = None) -> IngestReport:
    """Ingest the built-in source that `data` names; see `ingest`."""
    return ingest(demo_sources(data), data, store_path, progress)


def batch_id_of(sources: Sequence[Source], data: DataConfig) -> str:
    """The batch's id: the sources' names and a hash of everything that decides its rows."""
    settings = {"format": ROW_FORMAT, "max_pixels": data.max_pixels,
                "sources": [[source.name, source.settings] for source in sources]}
    standard = {one.name: one.default for one in fields(DataConfig)}
    settings |= {name: getattr(data, name) for name in ROW_SETTINGS if getattr(data, name) != standard[name]}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return "-".join([*(source.name for source in sources), digest[:16]])


def ingest(sources: Sequence[Source], data: DataConfig, store_path: str | Place,
           progress: Progress | None = None) -> IngestReport:
    """Append the sources' samples to the store as one version; Ray must be connected unless they are there already.

    Records that are no good are quarantined with their reason. Raises UserError, with nothing appended, where more than
    `data.max_bad_share` of all records are bad, the disk is full or a source says what is wrong with it.
    """
    start = time.monotonic()
    store, batch_id = ImageTextStore(store_path), batch_id_of(sources, data)
    added, duplicates = 0, dict[str, int]()
    if not store.has_batch(batch_id):
        with raise_told(store.path), attempt_at(store) as attempt:
            written = _write_files(sources, data, store.path, batch_id, attempt, progress)
            added, duplicates = _commit(written, store, batch_id, data)
    version = store.version()
    if store.has_batch(batch_id):
        duplicates = json.loads(store.notes(batch_id).get("duplicates", "{}"))
    splits: Counter[str] = Counter()
    for batch in store.iter_batches(["split"], version=version, rows=65_536):
        splits.update({count["values"]: count["counts"] for count in batch["split"].value_counts().to_pylist()})
    return IngestReport(version, dict(sorted(splits.items())), count_reasons(read_quarantine(store.path, batch_id)),
                        time.monotonic() - start, added, duplicates)


def _write_files(sources: Sequence[Source], data: DataConfig, folder: Place, batch_id: str, attempt: str,
                 progress: Progress | None) -> pa.Table:
    """Read, validate and write every part of every source in parallel; WRITTEN_SCHEMA, in the order of the parts."""
    assert ray.is_initialized(), "connect to Ray before an ingest"
    parts = [(number, part) for number, source in enumerate(sources) for part in range(source.parts)]
    work = partial(_ingest_parts, sources=list(sources), parts=parts, folder=folder, batch_id=batch_id,
                   attempt=attempt, data=data)
    tasks = max(FEWEST_TASKS, TASKS_A_CPU * int(ray.cluster_resources().get("CPU", 1)))
    quiet = DataContext.get_current().copy()
    quiet.enable_progress_bars = progress is None and quiet.enable_progress_bars
    with DataContext.current(quiet):
        dataset = ray.data.range(len(parts), override_num_blocks=max(1, min(len(parts), tasks))).map_batches(
            work, batch_size=1, batch_format="pyarrow")
        tables, done = [WRITTEN_SCHEMA.empty_table()], set[int]()
        table: pa.Table
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(table.select(WRITTEN_SCHEMA.names).cast(WRITTEN_SCHEMA))
            for mistake in filter(None, tables[-1]["mistake"].to_pylist()):
                raise UserError(mistake)
            done.update(table["part"].to_pylist())
            if progress is not None:
                progress("ingest", len(done), len(parts))
    return pa.concat_tables(tables).sort_by("file")


def _ingest_parts(numbers: pa.Table, sources: list[Source], parts: list[tuple[int, int]], folder: Place, batch_id: str,
                  attempt: str, data: DataConfig) -> Iterator[pa.Table]:
    """One Ray task: read some parts, write their files, and yield a WRITTEN_SCHEMA row for each file."""
    for number in numbers["id"].to_pylist():
        source, part = sources[parts[number][0]], parts[number][1]
        try:
            for piece, (rows, refused) in enumerate(_pieces(source, part, batch_id, data)):
                file = file_name(batch_id, number, piece, attempt) if rows else ""
                rows.sort(key=lambda row: row["sample_id"])
                if rows:
                    write_parquet(pa.Table.from_pylist(rows, STORE_SCHEMA), folder / file)
                yield pa.Table.from_pylist([{
                    "part": number, "file": file, "ids": [id_hash(row["sample_id"]) for row in rows],
                    "train": [row["split"] == "train" for row in rows],
                    "classes": [row["image_class"] for row in rows], "phashes": [row["phash"] for row in rows],
                    "refused": refused}], WRITTEN_SCHEMA)
        except Exception as error:
            mistake = told(error, folder)
            if mistake is None:
                raise
            yield pa.Table.from_pylist([{"part": number, "file": "", "mistake": mistake}], WRITTEN_SCHEMA)


def _pieces(source: Source, part: int, batch_id: str, data: DataConfig
            ) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, str]]]]:
    """A part's rows and refusals, in pieces that fit a file and the memory; at least one piece."""
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    held = 0
    for record in source.read(part):
        row = record if isinstance(record, Rejected) else to_row(record, source.name, batch_id, data)
        if isinstance(row, Rejected):
            refused.append(refusal(batch_id, source.name, row))
        else:
            rows.append(row)
            held += len(row["image"]) + sum(map(len, row["captions"])) + len(row["metadata"])
        if len(rows) >= FILE_ROWS or len(refused) >= FILE_ROWS or held >= FILE_BYTES:
            yield rows, refused
            rows, refused, held = [], [], 0
    yield rows, refused


def _commit(written: pa.Table, store: ImageTextStore, batch_id: str, data: DataConfig) -> tuple[int, dict[str, int]]:
    """Look for what the store has already, judge, append; the rows appended, and the copies found.

    Where another ingest commits between the look and the append, the look is taken again: ids stay unique.
    """
    while True:
        newest = store.newest()
        if store.has_batch(batch_id):  # another process that ran the same ingest was first
            return 0, {}
        kept = drop_duplicates(written, store, batch_id, data.duplicates, newest)
        _judge(written, kept, store, batch_id, data.max_bad_share)
        if not kept.files:
            return 0, kept.duplicates
        try:
            store.append(kept.files, batch_id, {"duplicates": json.dumps(kept.duplicates)}, follows=newest)
        except StoreMoved:
            continue
        # Of the same ingest twice only one lands; its files tell which.
        landed = str(kept.files[0]) in store.files()
        return kept.rows if landed else 0, kept.duplicates


def _judge(written: pa.Table, kept: Kept, store: ImageTextStore, batch_id: str, max_bad_share: float) -> None:
    """Write the quarantine; UserError where too many records are bad, or none is left for a new store."""
    refused = [pa.Table.from_struct_array(chunk.flatten()).cast(QUARANTINE_SCHEMA)
               for chunk in written["refused"].chunks]
    total = sum(pc.sum(pc.list_value_length(written[name])).as_py() or 0 for name in ("ids", "refused"))
    if not total:
        raise UserError(f"the source holds no record: nothing was appended to {store.path}; look at source.path, "
                        "source.format and source.splits")
    where = write_quarantine(store.path, batch_id, [*refused, kept.refused])
    reasons = count_reasons(pa.concat_tables([*refused, kept.refused]))
    bad = sum(count for reason, count in reasons.items() if reason not in COPY_REASONS)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    mend = f"nothing was appended to {store.path}. {where} lists them; mend the source"
    if bad > max_bad_share * total:
        raise UserError(f"{bad} of {total} records are bad ({listed}), more than data.max_bad_share={max_bad_share}: "
                        f"{mend}, or allow a larger share")
    if not kept.files and not store.exists():
        raise UserError(f"none of {total} records is good ({listed}): {mend}")
