"""What a new batch has twice: sample ids, which are unique in a store, and pictures, which may be dropped."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from numpy import ndarray

from pipelines.location import Place
from pipelines.store.copies import Pictures, find_copies
from pipelines.store.quarantine import QUARANTINE_SCHEMA
from pipelines.store.schema import read_row_groups, row_group_sizes, write_parquet
from pipelines.store.table import ImageTextStore

COPY_REASONS = ("exact duplicate", "near duplicate")
"""Reasons of rows that are dropped because `data.duplicates` wishes it: no faults, so no part of the bad share."""
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


def content_of(split: str, sha256: str) -> str:
    """What two rows with one id must have in common to count as the same row."""
    return f"{split}/{sha256}"


def drop_duplicates(written: pa.Table, store: ImageTextStore, batch_id: str, mode: str = "keep",
                    version: int | None = None) -> Kept:
    """Take out of the batch's files the rows whose id is taken and, as `mode` (`data.duplicates`) says, copies.

    Whether an id is taken is looked up in `version` of the store (-1: none; default: the newest). A file of which rows
    go is written anew under another name.

    `written` has a row a file (`file`, `sample_ids`, `contents`, `classes`, `phashes` in the file's order; classes and
    phashes null for rows that are not compared). The first of several rows with one id stays. An id that the store has
    with the same image and split is no fault: the row is there already. Only training rows go as copies: the split of
    a benchmark stays whole.
    """
    written = written.filter(pc.not_equal(written["file"], ""))
    lengths = pc.list_value_length(written["sample_ids"]).to_numpy()
    ids, contents = (written[name].cast(pa.large_list(pa.large_string())).combine_chunks().flatten()
                     for name in ("sample_ids", "contents"))  # together they may be longer than 2 GiB
    classes, phashes = (written[name].combine_chunks().flatten() for name in ("classes", "phashes"))
    compared = pc.is_valid(phashes).to_numpy(zero_copy_only=False)
    version = store.newest() if version is None else version
    known = _known(store, version, with_pictures=bool(compared.any()))
    refused, there = _taken(ids, contents, known)

    compared &= ~(refused | there)
    train = pc.starts_with(contents, content_of("train", "")).to_numpy(zero_copy_only=False)
    copies = find_copies(Pictures(classes.filter(pa.array(compared)).to_numpy(),
                                  phashes.filter(pa.array(compared)).to_numpy(), train[compared]), known.pictures)
    exact, near = np.zeros((2, len(ids)), bool)
    if mode != "keep":
        exact[compared] = copies.exact
    if mode == "drop_near":
        near[compared] = copies.near
    exact, near = exact & train, near & train

    keep = ~(refused | there | exact | near)
    files = [_keep(store.path / name, keep[start:start + length], version) for name, start, length
             in zip(written["file"].to_pylist(), np.cumsum(lengths) - lengths, lengths, strict=True)
             if keep[start:start + length].any()]
    rows = [_refusals(ids, refused, batch_id, "duplicate id", "this batch or the store has another row under this id"),
            _refusals(ids, exact, batch_id, COPY_REASONS[0], "an equal picture stays"),
            _refusals(ids, near, batch_id, COPY_REASONS[1], "a similar picture stays")]
    counts = {"exact": copies.exact, "near": copies.near, "leaked": copies.leaked}
    return Kept(files, int(keep.sum()), pa.concat_tables(rows),
                {name: int(mask.sum()) for name, mask in counts.items()} if compared.any() else {})


@dataclass(frozen=True)
class _Known:
    ids: pa.Array
    contents: pa.Array
    pictures: Pictures


def _known(store: ImageTextStore, version: int, with_pictures: bool) -> _Known:
    """Ids and contents of all rows of a version; on demand the pictures of those that can be compared."""
    schema = pa.schema([("sample_id", pa.string()), ("split", pa.string()), ("sha256", pa.string())])
    columns = [*schema.names, *(["image_class", "metadata"] if with_pictures else [])]
    parts, classes, hashes, train = [], [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, bool)]
    for batch in store.iter_batches(columns, version=version, rows=65_536) if version >= 0 else ():
        parts.append(batch.select(schema.names))
        if with_pictures:
            texts = pc.struct_field(pc.extract_regex(batch["metadata"], _PHASH), "phash")
            batch, texts = batch.filter(pc.is_valid(texts)), texts.drop_null()
            classes.append(batch["image_class"].to_numpy())
            hashes.append(np.array([int(text, 16) for text in texts.to_pylist()], np.uint64))
            train.append(pc.equal(batch["split"], "train").to_numpy(zero_copy_only=False))
    table = pa.Table.from_batches(parts, schema).cast(pa.schema([(name, pa.large_string()) for name in schema.names]))
    contents = pc.binary_join_element_wise(table["split"], table["sha256"], pa.scalar("/", pa.large_string()))
    return _Known(table["sample_id"].combine_chunks(), contents.combine_chunks(),
                  Pictures(np.concatenate(classes), np.concatenate(hashes), np.concatenate(train)))


def _taken(ids: pa.Array, contents: pa.Array, known: _Known) -> tuple[Bool[ndarray, " N"], Bool[ndarray, " N"]]:
    """Which rows have an id that another row holds, and which ids the store holds (the same row or another)."""
    codes = ids.dictionary_encode().indices.to_numpy()  # numbered as they come: where one is new, the highest rises
    refused = np.diff(np.maximum.accumulate(codes), prepend=-1) == 0
    at = pc.index_in(ids, known.ids)
    there = pc.is_valid(at).to_numpy(zero_copy_only=False)
    same = pc.fill_null(pc.equal(known.contents.take(at), contents), False)
    return refused | there & ~same.to_numpy(zero_copy_only=False), there


def _keep(file: Place, keep: Bool[ndarray, " R"], version: int) -> Place:
    """The file, or where rows go, one with the chosen rows: it stands in for the first as long as `version` is newest.
    """
    if keep.all():
        return file
    table = read_row_groups(file, range(len(row_group_sizes(file))))
    without = file.with_name(f"{file.stem}-v{version + 1}.parquet")
    write_parquet(table.filter(pa.array(keep)), without)
    return without


def _refusals(ids: pa.Array, which: Bool[ndarray, " N"], batch_id: str, reason: str, detail: str) -> pa.Table:
    found = ids.filter(pa.array(which)).cast(pa.string())
    source = pc.list_element(pc.split_pattern(found, "/", max_splits=1), 0)
    same = {name: pa.repeat(text, len(found)) for name, text in (("batch_id", batch_id), ("reason", reason),
                                                                  ("detail", detail))}
    return pa.table({"source": source, "reference": found, **same}).select(QUARANTINE_SCHEMA.names)
