"""The samples of one split as grouping sees them: ids, captions and classes in memory, images in the store's parts."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from pipelines.location import size_of
from pipelines.store.parts import Part, parts_of
from pipelines.store.table import ImageTextStore, file_batches

SAMPLE_COLUMNS = ("sample_id", "captions", "image_class")


@dataclass(frozen=True)
class Samples:
    """What grouping knows of a split without its images: `table` (SAMPLE_COLUMNS) sorted by sample id."""

    store: ImageTextStore
    version: int
    split: str
    table: pa.Table
    row_of_reading: Int64[np.ndarray, " N"]
    """Where the n-th row that the store yields stands in `table`."""
    parts: tuple[tuple[Part, int], ...]
    """The store's parts in the order in which it yields its rows, each with its number of rows of the split."""

    @classmethod
    def read(cls, store: ImageTextStore, version: int, split: str) -> Samples:
        """Read everything but the images; ValueError where a sample id occurs twice."""
        parts, batches = [], list[pa.RecordBatch]()
        for part in parts_of(store.files(version)):
            found = list(file_batches(part.file, SAMPLE_COLUMNS, split, part.row_groups))
            parts.append((part, sum(map(len, found))))
            batches += found
        if not batches:
            raise ValueError(f"{store.path}: version {version} holds no sample of split {split!r} to group")
        table = pa.Table.from_batches(batches)
        order = pc.sort_indices(table["sample_id"]).to_numpy()
        row_of_reading = np.empty(len(order), np.int64)
        row_of_reading[order] = np.arange(len(order))
        table = table.take(order).combine_chunks()
        ids = table["sample_id"]
        twice = pc.filter(ids[1:], pc.equal(ids[1:], ids[:-1]))
        if len(twice):
            raise ValueError(f"{store.path}: sample id {twice[0].as_py()!r} occurs more than once")
        return cls(store, version, split, table, row_of_reading, tuple(parts))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def stored_bytes(self) -> int:
        """About what the samples take in the store's files, which are images for the most part."""
        rows, mine = Counter[str](), Counter[str]()
        for part, count in self.parts:
            rows[part.file] += part.rows
            mine[part.file] += count
        return sum(size_of(file) * count // rows[file] for file, count in mine.items() if count)
