"""Task tables: Parquet in which a row is one image (NLVR2: a pair) with all its annotations: one decodes it once.

A table is a folder with a sub-folder for each annotations file. A sub-folder's manifest.json, replaced in one step,
names the files that count: whoever reads sees the rows before an ingest or those after it.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.files import write_atomically
from pipelines.location import Place, place_of
from pipelines.sources.files import Refused, read_image
from pipelines.sources.index import Entry, IndexedSource
from pipelines.sources.record import Rejected, Sample
from pipelines.store.attempts import attempt_at, file_name
from pipelines.store.ingest import Progress
from pipelines.store.quarantine import QUARANTINE_SCHEMA, count_reasons, refusal, write_quarantine
from pipelines.store.schema import check_columns, iter_batches, open_parquet, write_parquet
from pipelines.store.told import raise_told
from pipelines.store.validate import to_row

MANIFEST = "manifest.json"
FILE_BYTES = 128 * 2**20
_QUESTIONS = [("question_id", pa.int64()), ("question", pa.string()), ("question_type", pa.string()),
              ("answer_type", pa.string()), ("multiple_choice_answer", pa.string()),
              ("answers", pa.list_(pa.string()))]
ANNOTATIONS = {
    "vqa2": pa.struct(_QUESTIONS),
    "vg_qa": pa.struct(_QUESTIONS),
    "nlvr2": pa.struct([("identifier", pa.string()), ("sentence", pa.string()), ("label", pa.bool_())]),
    "snli_ve": pa.struct([("pair_id", pa.string()), ("hypothesis", pa.string()), ("label", pa.int8())]),
}
"""An annotation of each format; what test files do not tell is null."""


def task_schema(task: str) -> pa.Schema:
    """The columns of a task's table; images, sha256, widths and heights hold one value, or two for NLVR2's pairs."""
    return pa.schema([
        ("sample_id", pa.string()), ("source", pa.string()), ("split", pa.string()), ("images", pa.list_(pa.binary())),
        ("sha256", pa.list_(pa.string())), ("widths", pa.list_(pa.int32())), ("heights", pa.list_(pa.int32())),
        ("annotations", pa.list_(ANNOTATIONS[task])), ("metadata", pa.string()), ("batch_id", pa.string())])


def read_task_table(folder: str | Place, columns: Sequence[str] | None = None, split: str | None = None
                    ) -> Iterator[pa.RecordBatch]:
    """The rows of a task table (of one split), in a fixed order; FileNotFoundError where there is none."""
    found: list[Place] = list(place_of(folder).glob(f"*/{MANIFEST}"))
    manifests = sorted(found, key=lambda path: path.parent.name)
    if not manifests:
        raise FileNotFoundError(f"{folder}: there is no task table here; make one with jobs/ingest.py")
    for path in manifests:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = task_schema(manifest["task"])
        for name in manifest["files"]:
            with open_parquet(path.parent / name) as opened:
                check_columns(opened.schema_arrow, schema, path.parent / name)
            for batch in iter_batches(path.parent / name, schema.names):
                if split is not None:
                    batch = batch.filter(pc.equal(batch["split"], split))
                yield batch.select(list(columns or schema.names))


def manifest_of(folder: Place) -> dict[str, Any]:
    """The manifest of a sub-folder; empty where none is written yet."""
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@dataclass(frozen=True)
class _Committed:
    """A sub-folder, as attempts.py looks at places that are written to."""

    path: Place

    def exists(self) -> bool:
        return bool(manifest_of(self.path))

    def files(self) -> list[str]:
        return [str(self.path / name) for name in manifest_of(self.path).get("files", ())]


def write_task_table(source: IndexedSource, task: str, batch_id: str, data: DataConfig, folder: Place,
                     progress: Progress | None) -> dict[str, Any]:
    """Write the rows of `source` as a table's sub-folder `folder`, in place of what it held; Ray must be connected.

    Returns the new manifest. Of two at once the later to end stands. Raises UserError, with nothing changed, where more
    than data.max_bad_share are bad.
    """
    with raise_told(folder.parent), attempt_at(_Committed(folder)) as attempt:
        work = partial(_write_part, source=source, task=task, batch_id=batch_id, data=data, folder=folder,
                       attempt=attempt)
        dataset = ray.data.range(source.parts, override_num_blocks=max(1, source.parts)).map_batches(
            work, batch_size=1, batch_format="pyarrow")
        parts: list[dict[str, Any]] = []
        for row in dataset.iter_rows():
            parts.append(json.loads(row["told"]))
            if progress is not None:
                progress("ingest", len(parts), source.parts)
        manifest = _judge(sorted(parts, key=lambda part: part["part"]), task, batch_id, data, folder)
        before = manifest_of(folder).get("files", ())
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        for name in set(before) - set(manifest["files"]):
            (folder / name).unlink(missing_ok=True)
    return manifest


def _judge(parts: list[dict[str, Any]], task: str, batch_id: str, data: DataConfig, folder: Place) -> dict[str, Any]:
    """Write the quarantine, hold the bad share against its limit; the manifest."""
    refused = pa.Table.from_pylist([row for part in parts for row in part["refused"]], QUARANTINE_SCHEMA)
    rows: Counter[str] = sum((Counter(part["rows"]) for part in parts), Counter())
    total = rows.total() + refused.num_rows
    if not total:
        raise UserError(f"the source holds no record: nothing was changed in {folder}; look at source.path, "
                        "source.format and source.splits")
    where = write_quarantine(folder.parent, batch_id, [refused])
    if refused.num_rows > data.max_bad_share * total:
        reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(refused).items())
        raise UserError(f"{refused.num_rows} of {total} records are bad ({reasons}), more than "
                        f"data.max_bad_share={data.max_bad_share}: nothing was changed in {folder}. {where} lists "
                        "them; mend the source, or allow a larger share")
    return {"format": 1, "task": task, "batch_id": batch_id, "source": parts[0]["source"] if parts else "",
            "rows": dict(sorted(rows.items())), "annotations": sum(part["annotations"] for part in parts),
            "quarantined": count_reasons(refused), "files": [file for part in parts for file in part["files"]]}


def _write_part(numbers: pa.Table, source: IndexedSource, task: str, batch_id: str, data: DataConfig, folder: Place,
                attempt: str) -> pa.Table:
    """One Ray task: write a part's rows, and tell of them in JSON."""
    number = numbers["id"][0].as_py()
    files, refused, rows, annotations = [], [], Counter[str](), 0
    with raise_told(folder.parent):
        for piece, (good, bad) in enumerate(_pieces(source, number, batch_id, data)):
            refused += bad
            rows.update(row["split"] for row in good)
            annotations += sum(len(row["annotations"]) for row in good)
            if good:
                files.append(file_name("part", number, piece, attempt))
                write_parquet(pa.Table.from_pylist(good, task_schema(task)), folder / files[-1])
    told = {"part": number, "source": source.name, "files": files, "refused": refused, "rows": rows,
            "annotations": annotations}
    return pa.table({"told": [json.dumps(told)]})


def _pieces(source: IndexedSource, part: int, batch_id: str, data: DataConfig
            ) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, str]]]]:
    """A part's rows and refusals, in pieces that fit the memory."""
    good: list[dict[str, Any]] = []
    bad: list[dict[str, str]] = []
    held = 0
    for entry in source.entries(part):
        row = entry if isinstance(entry, Rejected) else _row(entry, source, batch_id, data)
        if isinstance(row, Rejected):
            bad.append(refusal(batch_id, source.name, row))
        else:
            good.append(row)
            held += sum(map(len, row["images"])) + sum(map(len, cast(Entry, entry).texts))
        if held >= FILE_BYTES:
            yield good, bad
            good, bad, held = [], [], 0
    yield good, bad


def _row(entry: Entry, source: IndexedSource, batch_id: str, data: DataConfig) -> dict[str, Any] | Rejected:
    """The row of an entry: every image goes through what the store's images go through."""
    # Of several names of one image the first that exists counts; a pair has a name for each of its two.
    wanted = [[name] for name in entry.images] if source.pairs else [entry.images]
    stored = []
    for names in wanted:
        try:
            sample = Sample(entry.sample_id, entry.split, read_image(source.images, names), ("task",), entry.metadata)
        except Refused as error:
            return Rejected(entry.sample_id, error.reason, error.detail)
        row = to_row(sample, source.name, batch_id, data)
        if isinstance(row, Rejected):
            return row
        stored.append(row)
    return {"sample_id": entry.sample_id, "source": source.name, "split": entry.split, "batch_id": batch_id,
            "images": [row["image"] for row in stored], "sha256": [row["sha256"] for row in stored],
            "widths": [row["width"] for row in stored], "heights": [row["height"] for row in stored],
            "annotations": [json.loads(text) for text in entry.texts], "metadata": json.dumps(dict(entry.metadata))}
