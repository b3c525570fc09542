"""The grouped store as a stream of raw rows in the global order, and as a Ray Data source (no torch import).

A raw row is one group: `position` (-1: padding), `epoch`, and the grouped store's columns.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.errors import UserError, is_users_mistake
from pipelines.feed.order import WindowSlice, with_padding
from pipelines.feed.plan import FeedPlan
from pipelines.grouping.materialise import GROUP_SCHEMA, GroupedStore
from pipelines.store.schema import read_row_groups

COLUMNS = ("group_id", "sample_ids", "images", "captions", "image_classes", "real")
PIECE_GROUPS = 256
"""Groups of a window that are handed on at once, so that the first are decoded before the last are put in order;
smaller pieces would only be more for Ray to keep account of."""
READ_THREADS = 4
"""Files of a window that are read at once."""
_IMAGES = pa.list_(pa.large_binary())
"""The images of a window together may pass the 2 GiB that 32-bit offsets reach."""


def window_slices(plan: FeedPlan, start_step: int, stop_step: int) -> list[WindowSlice]:
    """The windows that hold steps [start_step, stop_step)."""
    return list(plan.order().window_slices(start_step * plan.step_groups, stop_step * plan.step_groups))


def read_window(plan: FeedPlan, part: WindowSlice, world: int) -> Iterator[pa.Table]:
    """The raw rows at positions [part.start, part.stop), with the padding rows that `world` ranks need, in pieces.

    Micro-batches that lie wholly behind the end of training are padding too.
    """
    positions = np.arange(part.start, part.stop, dtype=np.int64)
    if plan.end is not None:
        last = -(-plan.end // plan.groups_per_atom) * plan.groups_per_atom
        positions[positions >= last] = -1
    batches, rows = _read_groups(plan.store_of(part.epoch), plan.order().slice_rows(part)[positions >= 0])
    padded = with_padding(part.start, part.stop, plan.step_groups, plan.padding_groups(world))
    padded[padded >= 0] = positions
    indices = np.full(len(padded), sum(batch.num_rows for batch in batches), dtype=np.int64)
    indices[padded >= 0] = rows
    for first in range(0, len(padded), PIECE_GROUPS):
        piece = slice(first, first + PIECE_GROUPS)
        yield _raw_rows([*batches, _padding_row()], indices[piece], padded[piece], part.epoch)


def padding(rows: int) -> pa.Table:
    """Raw rows of padding alone."""
    return _raw_rows([_padding_row()], np.zeros(rows, dtype=np.int64), np.full(rows, -1), 0)


def _raw_rows(batches: list[pa.RecordBatch], indices: Int64[ndarray, " R"], positions: Int64[ndarray, " R"],
              epoch: int) -> pa.Table:
    """The rows `indices` of batches of groups, one behind the other, with their positions and their epoch."""
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    number = np.searchsorted(starts, indices, side="right") - 1
    # Slices share their bytes, so that these are copied once; Arrow's take would copy the whole window for every piece.
    slices = [batches[i].slice(row, 1) for i, row in zip(number, indices - starts[number], strict=True)]
    rows = pa.Table.from_batches(slices).combine_chunks()
    columns = {"position": pa.array(positions), "epoch": pa.array(np.full(len(positions), epoch, dtype=np.int64))}
    return pa.table(columns | {name: rows[name] for name in COLUMNS})


def _read_groups(store: GroupedStore, wanted: Int64[ndarray, "R 2"]
                 ) -> tuple[list[pa.RecordBatch], Int64[ndarray, " R"]]:
    """Batches that hold the wanted (row group, row) pairs, and the row number of each in them."""
    places = store.row_groups
    needed = sorted({int(row_group) for row_group in wanted[:, 0]}, key=lambda i: (places[i][0], places[i][1]))
    by_file: dict[str, list[int]] = {}
    first_row, total = {}, 0
    for row_group in needed:
        file, index, rows = places[row_group]
        by_file.setdefault(str(file), []).append(index)
        first_row[row_group] = total
        total += rows
    with ThreadPoolExecutor(READ_THREADS) as pool:
        batches = [batch for file in pool.map(_read_file, by_file, by_file.values()) for batch in file]
    if (found := sum(batch.num_rows for batch in batches)) != total:
        raise ValueError(f"{store.path}: {total} groups expected, {found} read: its files do not "
                         "belong to its groups.json; build the groups again")
    return batches, np.array([first_row[int(row_group)] + row for row_group, row in wanted], dtype=np.int64)


def _read_file(file: str, row_groups: list[int]) -> list[pa.RecordBatch]:
    """Row groups of one file."""
    return _wide(read_row_groups(file, row_groups, list(COLUMNS))).to_batches()


def _padding_row() -> pa.RecordBatch:
    empty: dict[str, list[Any]] = {name: [[]] for name in COLUMNS} | {"group_id": [-1]}
    [row] = _wide(pa.table(empty, schema=pa.schema([GROUP_SCHEMA.field(name) for name in COLUMNS]))).to_batches()
    return row


def _wide(table: pa.Table) -> pa.Table:
    """The same with 64-bit offsets of its images; their bytes are not copied."""
    column = table.schema.get_field_index("images")
    return table.set_column(column, "images", table["images"].cast(_IMAGES))


def cut(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows` each (what is left at the end comes as it is)."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while (total := sum(t.num_rows for t in held)) >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows)
            held = [joined.slice(rows)] if total > rows else []
    if held:
        yield pa.concat_tables(held)


class GroupedStream(Datasource):
    """Ray Data source of steps [start_step, stop_step) of a plan: one read task a window, rows in stream order.

    Rows of padding follow at the end, up to a whole block of every rank.
    """

    def __init__(self, plan: FeedPlan, start_step: int, stop_step: int, world: int) -> None:
        super().__init__()
        self._plan = plan
        self._world = world
        self._slices = window_slices(plan, start_step, stop_step)
        rows = (stop_step - start_step) * plan.step_rows(world)
        self._missing_rows = -rows % (plan.block_rows(world) * world)

    def get_name(self) -> str:
        """The name of the read stage in Ray's dashboard."""
        return "GroupedStream"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: the manifest holds no byte counts."""
        return None

    def num_windows(self) -> int:
        """Read tasks of the whole stream."""
        return len(self._slices)

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None,
                       data_context: object = None) -> list[ReadTask]:
        """One task a window, in the order of the stream, whatever `parallelism` asks for."""
        *others, last = [partial(_told, partial(read_window, self._plan, part, self._world)) for part in self._slices]
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [*(ReadTask(read, unknown) for read in others),
                ReadTask(partial(_with_tail, last, self._missing_rows), unknown)]


def _told(read: Callable[[], Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """What `read` yields; what the user can mend leaves the task as a UserError, since on the way an exception loses
    the trace that tells our own from a library's.
    """
    try:
        yield from read()
    except Exception as error:
        if is_users_mistake(error):
            raise UserError(str(error)) from error
        raise


def _with_tail(read: Callable[[], Iterator[pa.Table]], rows: int) -> Iterator[pa.Table]:
    yield from read()
    if rows > 0:
        yield padding(rows)
