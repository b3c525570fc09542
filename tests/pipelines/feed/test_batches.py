"""The in-process feed: the same micro-batches for any world and cut, padding, positions that are asserted."""
from __future__ import annotations

import copy
import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ashnets.batch import MicroBatch
from pipelines.config import PretrainConfig
from pipelines.errors import FinalError
from pipelines.feed.batches import feed_plan, local_batches, micro_batch, micro_batches
from pipelines.feed.order import slots
from pipelines.feed.plan import FeedPlan
from pipelines.feed.source import cut, read_window, window_slices
from pipelines.feed.transform import transform_block

from .conftest import MakePlan
from .small_stores import SmallStore, assert_equal, write_groups


def global_order(plan: FeedPlan, start: int, stop: int, world: int) -> list[MicroBatch]:
    """The real micro-batches of all ranks, in slot order; padding is checked and dropped."""
    ranks = [local_batches(plan, start, stop, rank, world) for rank in range(world)]
    batches = []
    for _ in range(start, stop):
        by_slot = {slot: next(ranks[rank]) for rank in range(world)
                   for slot in slots(rank, world, plan.atoms_per_step)}
        for slot, batch in sorted(by_slot.items()):
            if slot >= plan.atoms_per_step:
                assert batch.position == -1 and batch.group_ids == () and batch.sample_ids == ()
                assert batch.weight.sum() == 0 and batch.pixels.shape == by_slot[0].pixels.shape
            else:
                batches.append(batch)
    assert all(next(rank, None) is None for rank in ranks)
    return batches


def test_any_worlds_and_cuts_give_the_same_micro_batches(make_plan: MakePlan) -> None:
    plan = make_plan()
    whole = list(local_batches(plan, 0, 15))
    assert [b.position for b in whole] == list(range(0, 90, 2))
    parts = [global_order(plan, a, b, world) for a, b, world in ((0, 4, 2), (4, 5, 5), (5, 12, 3), (12, 15, 1))]
    assert_equal([batch for part in parts for batch in part], whole)


def test_an_epoch_holds_every_sample_once(make_plan: MakePlan, small_store: SmallStore) -> None:
    plan = make_plan(groups_per_atom=1, atoms_per_step=37)
    batches = list(local_batches(plan, 0, 2))
    for epoch in range(2):
        part = batches[epoch * 37:(epoch + 1) * 37]
        assert {b.epoch for b in part} == {epoch}
        assert sorted(i for b in part for i in b.sample_ids) == sorted(
            i for row in small_store.rows for i in row["sample_ids"])
    assert [b.group_ids for b in batches[:37]] != [b.group_ids for b in batches[37:]]
    assert sum(int((b.weight == 0).sum()) for b in batches) == 2


def test_a_micro_batch_has_the_promised_types(make_plan: MakePlan, small_store: SmallStore) -> None:
    batch = next(local_batches(make_plan(), 0, 1))
    assert batch.pixels.shape == (6, 3, 16, 16) and batch.pixels.dtype == torch.uint8
    for name in ("input_ids", "attention_mask", "mlm_input_ids", "mlm_labels"):
        assert getattr(batch, name).shape == (6, 2, 8) and getattr(batch, name).dtype == torch.int64
    assert batch.image_class.shape == (6,) and batch.caption_class.shape == (6, 2)
    assert batch.weight.dtype == torch.float32 and batch.group_size == 3 and len(batch.sample_ids) == 6
    classes = {i: c for row in small_store.rows for i, c in zip(row["sample_ids"], row["image_classes"], strict=True)}
    assert batch.image_class.tolist() == [classes[i] for i in batch.sample_ids]
    batch.pixels.add_(1)


def test_bad_samples_are_counted(make_plan: MakePlan, small_store: SmallStore, tmp_path: Path) -> None:
    rows = copy.deepcopy(small_store.rows)
    rows[3]["images"][0] = b"broken"
    rows[4]["captions"][2] = []
    plan = make_plan(write_groups(tmp_path / "bad", rows), groups_per_atom=37, atoms_per_step=1)
    first, second = local_batches(plan, 0, 2)
    expected = {(rows[3]["sample_ids"][0], "undecodable"), (rows[4]["sample_ids"][2], "no caption")}
    assert set(first.bad) == set(second.bad) == expected and len(first.bad) == 2
    assert (first.weight == 0).sum() == 3


def test_a_stream_in_another_order_is_a_loud_error(make_plan: MakePlan) -> None:
    plan = make_plan()
    windows = (read_window(plan, part, 1) for part in window_slices(plan, 0, 2))
    blocks = [transform_block(block, plan) for block in cut(chain.from_iterable(windows), 2)]
    assert len(list(micro_batches(blocks, plan, 0, 2, 0, 1))) == 6
    swapped = micro_batches([blocks[0], blocks[2], blocks[1]], plan, 0, 1, 0, 1)
    next(swapped)
    with pytest.raises(FinalError, match="expected the groups at positions 2 to 3 .*preserve_order"):
        next(swapped)
    with pytest.raises(FinalError, match="started at another step"):
        next(micro_batches(blocks, plan, 1, 2, 0, 1))
    with pytest.raises(FinalError, match="positions 0 to 1"):
        next(micro_batches([blocks[0].slice(0, 1)], plan, 0, 1, 0, 1))
    with pytest.raises(FinalError, match="ended early"):
        list(micro_batches(blocks[:2], plan, 0, 1, 0, 1))
    with pytest.raises(FinalError, match="groups behind step 1, where the stream ends"):
        list(micro_batches(blocks, plan, 0, 1, 0, 1))


@pytest.mark.parametrize("world", [1, 2, 5])
def test_training_ends_inside_an_epoch_without_beginning_the_next(make_plan: MakePlan, world: int) -> None:
    """37 groups in steps of 6: step 7 holds one group that counts, a mate of its micro-batch, and padding."""
    plan = replace(make_plan(), end=37)
    assert [plan.real_atoms(step) for step in (0, 5, 6, 7)] == [3, 3, 1, 0]
    ranks = [list(local_batches(plan, 0, 7, rank, world)) for rank in range(world)]
    groups = [i for batches in ranks for batch in batches for i in batch.group_ids]
    assert sorted(groups) == list(range(1000, 1037))
    last = next(batch for batches in ranks for batch in batches if batch.position == 36)
    whole = next(batch for batch in local_batches(make_plan(), 6, 7) if batch.position == 36)
    assert len(last.group_ids) == 1 and last.weight[3:].sum() == 0 and torch.equal(last.pixels, whole.pixels)
    assert max(batch.position for batches in ranks for batch in batches) == 36


def test_blocks_may_come_in_pieces(make_plan: MakePlan) -> None:
    plan = make_plan()
    part = window_slices(plan, 0, 1)[0]
    rows = pa.concat_tables(read_window(plan, part, 1))
    block = transform_block(rows.slice(0, 2), plan)
    pieces = pa.concat_tables([block.slice(0, 1), block.slice(1, 1)])
    assert_equal([micro_batch(pieces, plan)], [micro_batch(block, plan)])
    three = transform_block(rows.slice(0, 3), plan)
    assert_equal([micro_batch(three.slice(0, 2), plan)], [micro_batch(block, plan)])
    last = transform_block(rows.slice(1, 2), plan)
    assert_equal([micro_batch(three.slice(1, 2), plan)], [micro_batch(last, plan)])


def test_an_abandoned_feed_leaves_no_thread(make_plan: MakePlan) -> None:
    batches = local_batches(make_plan(), 0, 50)
    next(batches)
    del batches
    assert not [t for t in threading.enumerate() if t.name.startswith("feed")]


def test_cut_keeps_rows_and_order() -> None:
    tables = [pa.table({"x": np.arange(a, b)}) for a, b in ((0, 3), (3, 3), (3, 11), (11, 12))]
    pieces = [t["x"].to_pylist() for t in cut(tables, 4)]
    assert pieces == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [t.num_rows for t in cut(tables, 5)] == [5, 5, 2]


def test_files_that_do_not_belong_to_the_manifest_are_refused(make_plan: MakePlan, small_store: SmallStore,
                                                              tmp_path: Path) -> None:
    path = write_groups(tmp_path / "store", small_store.rows, files=1)
    text = (path / "groups.json").read_text()
    (path / "groups.json").write_text(text.replace('"row_groups": [4,', '"row_groups": [5,'))
    with pytest.raises(ValueError, match="build the groups again"):
        list(local_batches(make_plan(path), 0, 7))


def test_the_plan_of_a_configuration(small_store: SmallStore) -> None:
    plan = feed_plan(PretrainConfig(), str(small_store.path))
    assert plan.tokenizer == "" and plan.step_groups == 32 and plan.padding_groups(3) == 16
    with pytest.raises(ValueError, match="model.text.tokenizer"):
        plan.load_tokenizer()
