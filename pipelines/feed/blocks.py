"""Blocks to micro-batches, still as tables: cut them, and assert that every position stands where the order says."""
from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipelines.errors import FinalError
from pipelines.feed.order import slots
from pipelines.feed.plan import FeedPlan


def atoms(blocks: Iterable[pa.Table], plan: FeedPlan, start_step: int, stop_step: int, rank: int,
          world: int) -> Iterator[pa.Table]:
    """What `rank` of `world` runs at steps [start_step, stop_step), a micro-batch a table, out of transformed blocks.

    Raises FinalError where a block is not what stands there in the global order: a reordered stream must never train.
    """
    cut = _cut(blocks, plan.groups_per_atom)
    for step in range(start_step, stop_step):
        for slot in slots(rank, world, plan.atoms_per_step):
            atom = next(cut, None)
            found = [] if atom is None else atom["position"].to_pylist()
            expected = expected_positions(plan, step, slot)
            if atom is None or found != expected:
                raise FinalError(
                    f"feed: rank {rank} of {world} expected the groups at positions {expected[0]} to {expected[-1]} "
                    f"(step {step}) and got {found[:1]} to {found[-1:]} ({len(found)} groups): the stream was started "
                    "at another step or ended early, or Ray Data changed its order (preserve_order off?)")
            yield atom
    if any(position >= 0 for rest in cut for position in rest["position"].to_pylist()):
        raise FinalError(f"feed: rank {rank} of {world} got groups behind step {stop_step}, where the stream ends")


def expected_positions(plan: FeedPlan, step: int, slot: int) -> list[int]:
    """The positions of the micro-batch in `slot` of `step`; -1 is padding."""
    first = step * plan.step_groups + slot * plan.groups_per_atom
    real = slot < plan.real_atoms(step)
    return [first + i if real else -1 for i in range(plan.groups_per_atom)]


def _cut(blocks: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    for block in blocks:
        for first in range(0, block.num_rows, rows):
            yield block.slice(first, rows)
