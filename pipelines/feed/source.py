"""The grouped store as a stream of raw rows in the global order, and as a Ray Data source (no torch import).

A raw row is one group: `position` (-1: padding), `epoch`, and the grouped store's columns.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.feed.order import WindowSlice, with_padding
from pipelines.feed.plan import FeedPlan
from pipelines.grouping.materialise import GROUP_SCHEMA, GroupedStore
from pipelines.store.schema import read_row_groups

COLUMNS = ("group_id", "sample_ids", "images", "captions", "image_classes", "real")


def window_slices(plan: FeedPlan, start_step: int, stop_step: int) -> list[WindowSlice]:
    """The windows that hold steps [start_step, stop_step)."""
    return list(plan.order().window_slices(start_step * plan.step_groups, stop_step * plan.step_groups))


def read_window(plan: FeedPlan, part: WindowSlice, world: int) -> pa.Table:
    """The raw rows at positions [part.start, part.stop), with the padding rows that `world` ranks need.

    Micro-batches that lie wholly behind the end of training are padding too.
    """
    positions = np.arange(part.start, part.stop, dtype=np.int64)
    if plan.end is not None:
        last = -(-plan.end // plan.groups_per_atom) * plan.groups_per_atom
        positions[positions >= last] = -1
    table, rows = _read_groups(plan.store_of(part.epoch), plan.order().slice_rows(part)[positions >= 0])
    padded = with_padding(part.start, part.stop, plan.step_groups, plan.padding_groups(world))
    padded[padded >= 0] = positions
    indices = np.full(len(padded), table.num_rows, dtype=np.int64)
    indices[padded >= 0] = rows
    table = pa.concat_tables([table, _padding_row()]).take(pa.array(indices))
    columns = {"position": pa.array(padded), "epoch": pa.array(np.full(len(padded), part.epoch, dtype=np.int64))}
    return pa.table(columns | {name: table[name] for name in COLUMNS})


def padding(rows: int) -> pa.Table:
    """Raw rows of padding alone."""
    row = _padding_row().take(pa.array(np.zeros(rows, dtype=np.int64)))
    columns = {"position": pa.array(np.full(rows, -1)), "epoch": pa.array(np.zeros(rows, dtype=np.int64))}
    return pa.table(columns | {name: row[name] for name in COLUMNS})


def _read_groups(store: GroupedStore, wanted: Int64[ndarray, "R 2"]) -> tuple[pa.Table, Int64[ndarray, " R"]]:
    """A table that holds the wanted (row group, row) pairs, and the row number of each in it."""
    places = store.row_groups
    needed = sorted({int(row_group) for row_group in wanted[:, 0]}, key=lambda i: (places[i][0], places[i][1]))
    by_file: dict[str, list[int]] = {}
    first_row, total = {}, 0
    for row_group in needed:
        file, index, rows = places[row_group]
        by_file.setdefault(str(file), []).append(index)
        first_row[row_group] = total
        total += rows
    table = pa.concat_tables([_padding_row().slice(0, 0), *(
        read_row_groups(file, indices, list(COLUMNS)) for file, indices in by_file.items())])
    if table.num_rows != total:
        raise ValueError(f"{store.path}: {total} groups expected, {table.num_rows} read: its files do not "
                         "belong to its groups.json; build the groups again")
    return table, np.array([first_row[int(row_group)] + row for row_group, row in wanted], dtype=np.int64)


def _padding_row() -> pa.Table:
    empty: dict[str, list[Any]] = {name: [[]] for name in COLUMNS} | {"group_id": [-1]}
    return pa.table(empty, schema=pa.schema([GROUP_SCHEMA.field(name) for name in COLUMNS]))


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

    Steps of padding follow at the end, up to a whole number of blocks.
    """

    def __init__(self, plan: FeedPlan, start_step: int, stop_step: int, world: int) -> None:
        super().__init__()
        self._plan = plan
        self._world = world
        self._slices = window_slices(plan, start_step, stop_step)
        self._missing_steps = -(stop_step - start_step) % plan.steps_per_block(world)

    def get_name(self) -> str:
        """The name of the read stage in Ray's dashboard."""
        return "GroupedStream"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: the manifest holds no byte counts."""
        return None

    def num_windows(self) -> int:
        """Read tasks of the whole stream."""
        return len(self._slices)

    def largest_window(self) -> int:
        """Groups of the largest window."""
        return max(part.stop - part.start for part in self._slices)

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None,
                       data_context: object = None) -> list[ReadTask]:
        """One task a window, in the order of the stream, whatever `parallelism` asks for."""
        *others, last = [partial(read_window, self._plan, part, self._world) for part in self._slices]
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        extra = self._missing_steps * self._plan.step_rows(self._world)
        return [*(ReadTask(partial(_one, read), unknown) for read in others),
                ReadTask(partial(_with_tail, last, extra), unknown)]


def _one(read: Callable[[], pa.Table]) -> list[pa.Table]:
    return [read()]


def _with_tail(read: Callable[[], pa.Table], rows: int) -> list[pa.Table]:
    return [pa.concat_tables([read(), padding(rows)])]
