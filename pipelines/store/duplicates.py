"""What a new batch has twice: sample ids, which are unique in a store, and pictures, which may be dropped.

Of every row of the batch only numbers are held in memory; texts are read from the files for the few rows that need it.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64, UInt64
from numpy import ndarray

from pipelines.location import Place
from pipelines.store.copies import Pictures, find_copies
from pipelines.store.quarantine import QUARANTINE_SCHEMA
from pipelines.store.schema import iter_batches, read_row_groups, row_group_sizes, write_parquet
from pipelines.store.table import ImageTextStore

COPY_REASONS = ("exact duplicate", "near duplicate")
"""Reasons of rows that are dropped because `data.duplicates` wishes it: no faults, so no part of the bad share."""
CONTENT = ("sample_id", "split", "sha256")
"""Two rows with one id that differ in the others are different rows."""
READ_ROWS = 65_536
_PHASH = r'"phash": "(?P<phash>[0-9a-f]{16})"'


@dataclass(frozen=True)
class Kept:
    """What is left of a batch."""

    files: list[Place]
    """The batch's files without the rows that go."""
    rows: int
    refused: pa.Table
    """What went, and why (QUARANTINE_SCHEMA); not the rows that the store has already."""
    duplicates: dict[str, int]
    """Rows with an `exact` or a `near` copy before them, and `leaked`: rows for evaluation of which the store holds a
    copy for training. Empty where the source is not compared."""


def id_hash(sample_id: str) -> int:
    """64 bits: rows of different hashes have different ids."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "little")


def drop_duplicates(written: pa.Table, store: ImageTextStore, batch_id: str, mode: str = "keep",
                    version: int | None = None) -> Kept:
    """Take out of the batch's files the rows whose id is taken and, as `mode` (`data.duplicates`) says, copies.

    Whether an id is taken is looked up in `version` of the store (-1: none; default: the newest). A file of which rows
    go is written anew under another name.

    `written` has a row a file (`file`, `ids`, `train`, `classes`, `phashes` in the file's order; `ids` by `id_hash`,
    classes and phashes null for rows that are not compared). The first of several rows with one id stays. An id that
    the store has with the same image and split is no fault: the row is there already. Only training rows go as copies:
    the split of a benchmark stays whole.
    """
    written = written.filter(pc.not_equal(written["file"], ""))
    hashes, train, classes, phashes = (written[name].combine_chunks().flatten()
                                       for name in ("ids", "train", "classes", "phashes"))
    train = train.to_numpy(zero_copy_only=False)
    compared = pc.is_valid(phashes).to_numpy(zero_copy_only=False)
    version = store.newest() if version is None else version
    batch = _Batch([store.path / name for name in written["file"].to_pylist()],
                   pc.list_value_length(written["ids"]).to_numpy())
    refused, there = _taken(batch, hashes.to_numpy(), store, version)

    compared &= ~(refused | there)
    copies = find_copies(Pictures(classes.filter(pa.array(compared)).to_numpy(),
                                  phashes.filter(pa.array(compared)).to_numpy(), train[compared]),
                         _pictures(store, version if compared.any() else -1))
    exact, near = np.zeros((2, len(hashes)), bool)
    if mode != "keep":
        exact[compared] = copies.exact
    if mode == "drop_near":
        near[compared] = copies.near
    exact, near = exact & train, near & train

    keep = ~(refused | there | exact | near)
    left = [_keep(file, keep[rows], version) for file, rows in batch.files_and_rows() if keep[rows].any()]
    rows = [_refusals(batch, refused, batch_id, "duplicate id",
                      "this batch or the store has another row under this id"),
            _refusals(batch, exact, batch_id, COPY_REASONS[0], "an equal picture stays"),
            _refusals(batch, near, batch_id, COPY_REASONS[1], "a similar picture stays")]
    counts = {"exact": copies.exact, "near": copies.near, "leaked": copies.leaked}
    return Kept(left, int(keep.sum()), pa.concat_tables(rows),
                {name: int(mask.sum()) for name, mask in counts.items()} if compared.any() else {})


@dataclass(frozen=True)
class _Batch:
    """The batch's files and how many rows each has."""

    files: Sequence[Place]
    lengths: Int64[ndarray, " F"]

    def files_and_rows(self) -> list[tuple[Place, slice]]:
        """Every file with the numbers of its rows in the batch."""
        ends = np.cumsum(self.lengths)
        return [(file, slice(end - length, end))
                for file, end, length in zip(self.files, ends, self.lengths, strict=True)]

    def read(self, which: Bool[ndarray, " N"], columns: Sequence[str]) -> pa.Table:
        """Some columns of some rows, as large strings."""
        found = [batch for file, rows in self.files_and_rows() if which[rows].any()
                 for batch in _rows(iter_batches(file, columns, rows=READ_ROWS), which[rows])]
        return pa.Table.from_batches(found, _large(columns))


def _large(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.large_string()) for name in columns])


def _rows(batches: Iterable[pa.RecordBatch], which: Bool[ndarray, " N"]) -> Iterable[pa.RecordBatch]:
    seen = 0
    for batch in batches:
        yield batch.filter(pa.array(which[seen:seen + len(batch)])).cast(_large(batch.schema.names))
        seen += len(batch)


def _taken(batch: _Batch, hashes: UInt64[ndarray, " N"], store: ImageTextStore, version: int,
           ) -> tuple[Bool[ndarray, " N"], Bool[ndarray, " N"]]:
    """Which rows have an id that another row holds, and which ids the store holds (the same row or another)."""
    ordered = np.sort(hashes)
    known = _known(store, version, ordered)
    several = ordered[1:][ordered[1:] == ordered[:-1]]
    suspect = np.isin(hashes, several) | np.isin(hashes, _hashes(known["sample_id"]))
    refused, there = suspect.copy(), suspect.copy()
    if suspect.any():
        rows = batch.read(suspect, CONTENT)
        ids = rows["sample_id"].combine_chunks()
        codes = ids.dictionary_encode().indices.to_numpy()  # numbered as they come: a new one raises the highest
        again = np.diff(np.maximum.accumulate(codes), prepend=-1) == 0
        at = pc.index_in(ids, known["sample_id"].combine_chunks())
        there[suspect] = pc.is_valid(at).to_numpy(zero_copy_only=False)
        same = pc.and_(*(pc.equal(rows[name].combine_chunks(), known[name].combine_chunks().take(at))
                         for name in CONTENT[1:]))
        refused[suspect] = again | pc.invert(pc.fill_null(same, True)).to_numpy(zero_copy_only=False)
    return refused, there


def _known(store: ImageTextStore, version: int, ordered: UInt64[ndarray, " N"]) -> pa.Table:
    """The rows of a version whose ids' hashes are among `ordered`."""
    found: list[pa.RecordBatch] = []
    for batch in store.iter_batches(list(CONTENT), version=version, rows=READ_ROWS) if version >= 0 else ():
        hashes = _hashes(batch["sample_id"])
        at = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
        found += _rows([batch], ordered[at] == hashes if len(ordered) else np.zeros(len(batch), bool))
    return pa.Table.from_batches(found, _large(CONTENT))


def _hashes(ids: pa.Array | pa.ChunkedArray) -> UInt64[ndarray, " N"]:
    return np.array([id_hash(sample_id) for sample_id in ids.to_pylist()], np.uint64)


def _pictures(store: ImageTextStore, version: int) -> Pictures:
    """Of those rows of a version (-1: none) that can be compared."""
    classes, hashes, train = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, bool)]
    columns = ["split", "image_class", "metadata"]
    for batch in store.iter_batches(columns, version=version, rows=READ_ROWS) if version >= 0 else ():
        texts = pc.struct_field(pc.extract_regex(batch["metadata"], _PHASH), "phash")
        batch, texts = batch.filter(pc.is_valid(texts)), texts.drop_null()
        classes.append(batch["image_class"].to_numpy())
        hashes.append(np.array([int(text, 16) for text in texts.to_pylist()], np.uint64))
        train.append(pc.equal(batch["split"], "train").to_numpy(zero_copy_only=False))
    return Pictures(np.concatenate(classes), np.concatenate(hashes), np.concatenate(train))


def _keep(file: Place, keep: Bool[ndarray, " R"], version: int) -> Place:
    """The file, or where rows go, one with the chosen rows: it stands in for the first as long as `version` is newest.
    """
    if keep.all():
        return file
    table = read_row_groups(file, range(len(row_group_sizes(file))))
    without = file.with_name(f"{file.stem}-v{version + 1}.parquet")
    write_parquet(table.filter(pa.array(keep)), without)
    return without


def _refusals(batch: _Batch, which: Bool[ndarray, " N"], batch_id: str, reason: str, detail: str) -> pa.Table:
    found = batch.read(which, ["sample_id"])["sample_id"].cast(pa.string())
    source = pc.list_element(pc.split_pattern(found, "/", max_splits=1), 0)
    same = {name: pa.repeat(text, len(found)) for name, text in (("batch_id", batch_id), ("reason", reason),
                                                                  ("detail", detail))}
    return pa.table({"source": source, "reference": found, **same}).select(QUARANTINE_SCHEMA.names)
