"""The global order of groups as pure functions: which group stands at a position, and which worker trains on it.

The stream is endless: epoch after epoch without a seam. Inside an epoch the Parquet row groups are permuted, cut into
windows of W row groups, and the groups of a window are permuted, all by (seed, epoch) alone. Nothing here depends on
the number of workers, so any sequence of worlds and cut points sees the same stream.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64
from numpy import ndarray


def generator(purpose: str, *key: int | str) -> np.random.Generator:
    """A random generator that depends on `purpose` and `key` alone, on every machine and in every process."""
    text = "\x00".join([purpose, *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class WindowSlice:
    """Positions [start, stop) of the stream, all inside window `window` of `epoch`."""

    epoch: int
    window: int
    start: int
    stop: int


@dataclass(frozen=True)
class GroupReference:
    """Where a group lies: row `row` of row group `row_group` (an index into the store's list), and its epoch."""

    epoch: int
    row_group: int
    row: int


@dataclass(frozen=True)
class EpochPlan:
    """An epoch's permutation of the row groups, their sizes, and where in the epoch its windows start (and end).

    A window of empty row groups only has no extent, so no position falls into it.
    """

    row_groups: Int64[ndarray, " R"]
    sizes: Int64[ndarray, " R"]
    bounds: Int64[ndarray, " W+1"]


@dataclass(frozen=True)
class Order:
    """The order of a grouped store whose row groups hold `sizes` groups each."""

    sizes: tuple[int, ...]
    window: int
    seed: int
    groups: int = field(init=False)
    _plans: dict[int, EpochPlan] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        groups = sum(self.sizes)
        if groups == 0:
            raise ValueError("the grouped store holds no group: build the groups again")
        if self.window < 1:
            raise ValueError(f"feed.window={self.window} is not allowed: at least 1 row group")
        object.__setattr__(self, "groups", groups)

    def epoch_of(self, position: int) -> int:
        """The epoch that position belongs to."""
        return position // self.groups

    def epoch_plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; the last few are kept."""
        plan = self._plans.get(epoch)
        if plan is None:
            if len(self._plans) >= 4:
                self._plans.clear()
            shuffled = generator("row groups", self.seed, epoch).permutation(len(self.sizes)).astype(np.int64)
            sizes = np.asarray(self.sizes, dtype=np.int64)[shuffled]
            per_window = np.add.reduceat(sizes, np.arange(0, len(sizes), self.window))
            plan = EpochPlan(shuffled, sizes, np.concatenate([[0], np.cumsum(per_window)]))
            self._plans[epoch] = plan
        return plan

    def rows(self, epoch: int, window: int) -> Int64[ndarray, "R 2"]:
        """The (row group, row) of every group of one window, in stream order."""
        plan, inside = self.epoch_plan(epoch), slice(window * self.window, (window + 1) * self.window)
        members, sizes = plan.row_groups[inside], plan.sizes[inside]
        row = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
        pairs = np.stack([np.repeat(members, sizes), row], axis=1)
        return pairs[generator("groups of a window", self.seed, epoch, window).permutation(len(pairs))]

    def window_slices(self, start: int, stop: int) -> Iterator[WindowSlice]:
        """The windows that hold the positions [start, stop), in order, cut to them."""
        while start < stop:
            epoch, offset = divmod(start, self.groups)
            bounds = self.epoch_plan(epoch).bounds
            window = int(np.searchsorted(bounds, offset, side="right")) - 1
            end = min(stop, epoch * self.groups + int(bounds[window + 1]))
            yield WindowSlice(epoch, window, start, end)
            start = end

    def window_start(self, epoch: int, window: int) -> int:
        """The position of the first group of a window."""
        return epoch * self.groups + int(self.epoch_plan(epoch).bounds[window])

    def slice_rows(self, part: WindowSlice) -> Int64[ndarray, "R 2"]:
        """The (row group, row) of the groups at positions [part.start, part.stop)."""
        first = self.window_start(part.epoch, part.window)
        return self.rows(part.epoch, part.window)[part.start - first:part.stop - first]

    def reference(self, position: int) -> GroupReference:
        """The group at a position of the stream."""
        part = next(self.window_slices(position, position + 1))
        row_group, row = self.slice_rows(part)[0]
        return GroupReference(part.epoch, int(row_group), int(row))


def rounds(atoms_per_step: int, world: int) -> int:
    """Micro-batches that every rank runs in one optimizer step."""
    return -(-atoms_per_step // world)


def slots(rank: int, world: int, atoms_per_step: int) -> list[int]:
    """The slots of a step that `rank` runs, in order; slot >= atoms_per_step is padding of weight 0."""
    return [r * world + rank for r in range(rounds(atoms_per_step, world))]


def with_padding(start: int, stop: int, step_groups: int, padding: int) -> Int64[ndarray, " R"]:
    """The positions [start, stop) with `padding` times -1 behind the last position of every step.

    The row number in this padded stream tells the rank: rows are cut into atoms, atom c goes to rank c mod world.
    """
    positions = np.arange(start, stop, dtype=np.int64)
    ends = np.flatnonzero((positions + 1) % step_groups == 0) + 1
    return np.insert(positions, np.repeat(ends, padding), -1)


def by_rank(rows: int, world: int, atoms: int, atom: int) -> Int64[ndarray, " R"]:
    """Row numbers of the padded stream, put in order by (block, rank, micro-batch).

    Micro-batch c of `atom` rows is rank c mod world's; a block holds `atoms` of one rank in the order in which it runs
    them, and `rows` is a whole number of blocks of every rank.
    """
    numbers = np.arange(rows, dtype=np.int64).reshape(rows // (atoms * world * atom), atoms, world, atom)
    return numbers.transpose(0, 2, 1, 3).ravel()
