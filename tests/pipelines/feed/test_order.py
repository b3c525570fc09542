"""The global order: every group once an epoch, the same stream for any worlds and cut points, cheap from anywhere."""
from __future__ import annotations

import time
from dataclasses import astuple, replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import FeedConfig
from pipelines.feed.blocks import expected_positions
from pipelines.feed.order import GroupReference, Order, by_rank, generator, slots, with_padding
from pipelines.feed.plan import FeedPlan

from .conftest import MakePlan

sizes_lists = st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)
PLAN = FeedPlan("", 0, FeedConfig(), "", 8, 0.15, False, 1, 1)
orders = st.builds(Order, sizes_lists.map(tuple), st.integers(1, 5), st.integers(0, 2**31))


def stream(order: Order, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(epoch, row group, row) at every position."""
    return [(part.epoch, int(g), int(r)) for part in order.window_slices(start, stop)
            for g, r in order.slice_rows(part)]


@settings(max_examples=300, deadline=None)
@given(orders)
def test_every_group_comes_exactly_once_an_epoch(order: Order) -> None:
    groups = {(g, r) for g, size in enumerate(order.sizes) for r in range(size)}
    whole = stream(order, 0, 3 * order.groups)
    for epoch in range(3):
        part = whole[epoch * order.groups:(epoch + 1) * order.groups]
        assert {e for e, _, _ in part} == {epoch}
        assert sorted((g, r) for _, g, r in part) == sorted(groups)


@settings(max_examples=300, deadline=None)
@given(orders, st.data())
def test_any_cut_continues_the_same_stream(order: Order, data: st.DataObject) -> None:
    stop = 3 * order.groups
    whole = stream(order, 0, stop)
    cuts = sorted(data.draw(st.lists(st.integers(0, stop), max_size=4)))
    parts = [stream(order, a, b) for a, b in zip([0, *cuts], [*cuts, stop], strict=True)]
    assert [reference for part in parts for reference in part] == whole
    position = data.draw(st.integers(0, stop - 1))
    assert order.reference(position) == GroupReference(*whole[position])
    assert order.epoch_of(position) == whole[position][0]


@settings(max_examples=1000, deadline=None)
@given(orders, st.integers(1, 9), st.integers(1, 5), st.integers(1, 12),
       st.lists(st.tuples(st.integers(1, 64), st.integers(1, 4)), min_size=1, max_size=6),
       st.one_of(st.none(), st.integers(1, 100)))
def test_any_sequence_of_worlds_runs_every_group_once_in_order(
        order: Order, atoms_per_step: int, groups_per_atom: int, atoms_per_block: int,
        segments: list[tuple[int, int]], end: int | None) -> None:
    """The whole way but for images and Ray: windows, padding, blocks, each rank's expectations."""
    plan = replace(PLAN, atoms_per_step=atoms_per_step, groups_per_atom=groups_per_atom, end=end)
    trained: list[tuple[int, int, int]] = []
    step = 0
    with mock.patch.object(FeedPlan, "atoms_per_block", lambda self, world: atoms_per_block):
        for world, steps in segments:
            streams = [iter(rows) for rows in blocks_of(order, plan, step, step + steps, world)]
            for s in range(step, step + steps):
                by_slot = {}
                for rank in range(world):
                    for slot in slots(rank, world, atoms_per_step):
                        positions = [next(streams[rank]) for _ in range(groups_per_atom)]
                        assert positions == expected_positions(plan, s, slot)
                        by_slot[slot] = positions
                for slot in sorted(by_slot):
                    trained += [astuple(order.reference(p)) for p in by_slot[slot] if plan.counts(p)]
            assert all(p == -1 for rows in streams for p in rows)
            step += steps
    stop = min(step * plan.step_groups, step * plan.step_groups if end is None else end)
    assert trained == stream(order, 0, stop)
    for epoch in range(stop // order.groups):
        of_epoch = [reference[1:] for reference in trained if reference[0] == epoch]
        assert sorted(of_epoch) == [(g, r) for g, size in enumerate(order.sizes) for r in range(size)]


def blocks_of(order: Order, plan: FeedPlan, start: int, stop: int, world: int) -> list[list[int]]:
    """The positions in every rank's blocks, made by the pipeline's own steps, two blocks of every rank at once."""
    last = None if plan.end is None else -(-plan.end // plan.groups_per_atom) * plan.groups_per_atom
    rows = [-1 if last is not None and p >= last else int(p)
            for part in order.window_slices(start * plan.step_groups, stop * plan.step_groups)
            for p in with_padding(part.start, part.stop, plan.step_groups, plan.padding_groups(world))]
    assert len(rows) == (stop - start) * plan.step_rows(world)
    block = plan.block_rows(world)
    rows += [-1] * (-len(rows) % (block * world))
    shares: list[list[int]] = [[] for _ in range(world)]
    for first in range(0, len(rows), 2 * block * world):
        span = np.array(rows[first:first + 2 * block * world])
        ordered = span[by_rank(len(span), world, plan.atoms_per_block(world), plan.groups_per_atom)]
        for number, share in enumerate(ordered.reshape(-1, block)):
            shares[number % world] += share.tolist()
    return shares


def test_a_block_holds_several_micro_batches_of_one_rank() -> None:
    """Two ranks: rows 0 2 4 6 are rank 0's micro-batches of one row, rows 0 1 4 5 those of two."""
    assert by_rank(8, 2, 4, 1).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert by_rank(8, 2, 2, 1).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert by_rank(8, 2, 2, 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize(("window", "side", "world", "atom", "rows", "task"), [
    (500, 16, 1, 4, 128, 4), (500, 16, 4, 4, 128, 4), (500, 16, 2, 5, 125, 4), (500, 16, 1, 200, 200, 4),
    (500, 384, 1, 1, 75, 4), (500, 1000, 1, 1, 11, 4), (500, 9000, 1, 1, 1, 4),  # 96 MiB hold no more of three images
    (20, 16, 1, 1, 80, 1), (64, 16, 1, 1, 128, 2), (100, 16, 1, 1, 128, 3), (100, 16, 3, 2, 128, 3),  # 4 groups each
    (100, 16, 2, 2, 128, 2), (3, 16, 1, 1, 12, 1), (3, 16, 5, 1, 2, 1), (3, 16, 64, 1, 1, 1)])
def test_blocks_and_tasks_are_bounded_by_groups_bytes_and_the_window(
        make_plan: MakePlan, window: int, side: int, world: int, atom: int, rows: int, task: int) -> None:
    plan = make_plan(window=window, image_size=side, groups_per_atom=atom)
    assert (plan.block_rows(world), plan.task_blocks(world)) == (rows, task)


def test_order_depends_on_seed_and_epoch_and_stays_inside_windows() -> None:
    order = Order((4,) * 12, 3, 0)
    first, second = stream(order, 0, 48), stream(order, 48, 96)
    assert [r[1:] for r in first] != [r[1:] for r in second]
    assert first != stream(Order((4,) * 12, 3, 1), 0, 48)
    assert {g for _, g, _ in first[:12]} != {g for _, g, _ in second[:12]}
    for start in range(0, 48, 12):
        window = [g for _, g, _ in first[start:start + 12]]
        assert len(set(window)) == 3 and window != sorted(window)


def test_order_is_the_same_for_ever() -> None:
    """A change of these numbers would break the resume of every run that exists."""
    assert [r[1:] for r in stream(Order((2, 1) * 6, 4, 5), 12, 24)] == [
        (2, 1), (2, 0), (6, 1), (1, 0), (6, 0), (11, 0), (2, 1), (9, 0), (11, 0), (2, 0), (8, 1), (8, 0)]
    assert generator("x", 1, "1").integers(0, 1000, 3).tolist() == [964, 721, 174]


def test_the_parts_of_a_key_are_kept_apart() -> None:
    keys = [("x", 1, "1"), ("x", "1", 1), ("x", 11), ("x", 1, 1), ("y", 1, 1)]
    assert len({generator(*key).integers(0, 2**62) for key in keys}) == len(keys)


def test_a_position_deep_in_a_large_store_is_cheap() -> None:
    order = Order((16,) * 157_000, 128, 0)
    start = time.process_time()
    reference = order.reference(37 * order.groups + 1_234_567)
    assert time.process_time() - start < 2
    assert reference.epoch == 37
    parts = list(order.window_slices(0, order.groups))
    assert len(parts) == -(-157_000 // 128)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(("sizes", "window", "message"), [((), 1, "no group"), ((0,), 1, "no group"),
                                                          ((1,), 0, "feed.window")])
def test_mistakes_are_named(sizes: tuple[int, ...], window: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(sizes, window, 0)
