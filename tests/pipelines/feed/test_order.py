"""The global order: every group once an epoch, the same stream for any worlds and cut points, cheap from anywhere."""
from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.feed.order import GroupReference, Order, atoms, generator, rounds, slots, with_padding

sizes_lists = st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)
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
@given(st.integers(1, 9), st.integers(1, 5), st.lists(st.tuples(st.integers(1, 64), st.integers(1, 4)), min_size=1,
                                                      max_size=6), st.data())
def test_any_sequence_of_worlds_runs_every_position_once_in_order(
        atoms_per_step: int, groups_per_atom: int, segments: list[tuple[int, int]], data: st.DataObject) -> None:
    step_groups, trained, step = atoms_per_step * groups_per_atom, [], 0
    for world, steps in segments:
        start, stop = step * step_groups, (step + steps) * step_groups
        cut = data.draw(st.integers(start, stop))
        padding = (rounds(atoms_per_step, world) * world - atoms_per_step) * groups_per_atom
        rows = np.concatenate([with_padding(start, cut, step_groups, padding),
                               with_padding(cut, stop, step_groups, padding)])
        blocks = rows.reshape(-1, groups_per_atom)
        assert len(blocks) == steps * rounds(atoms_per_step, world) * world
        by_rank = [iter(blocks[rank::world]) for rank in range(world)]
        for s in range(step, step + steps):
            ran = {}
            for rank in range(world):
                for slot, atom in zip(slots(rank, world, atoms_per_step),
                                      atoms(s, rank, world, atoms_per_step), strict=True):
                    block = next(by_rank[rank])
                    assert (atom is None) == (slot >= atoms_per_step) == bool((block == -1).all())
                    if atom is not None:
                        assert block[0] == atom * groups_per_atom
                        ran[slot] = block
            trained += [int(p) for slot in sorted(ran) for p in ran[slot]]
        step += steps
    assert trained == list(range(step * step_groups))


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
