"""Transformed blocks to micro-batches, and the whole feed in this process: the same plan and transform without Ray."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa
import torch

from ashnets.batch import MicroBatch
from pipelines.errors import FinalError
from pipelines.feed.order import rounds
from pipelines.feed.plan import FeedPlan as FeedPlan
from pipelines.feed.plan import feed_plan as feed_plan
from pipelines.feed.source import cut, read_window, window_slices
from pipelines.feed.transform import array_column, transform_block


class BatchIterator(Iterator[MicroBatch]):
    """Micro-batches of one rank; `bad` counts the samples that were replaced, by reason."""

    def __init__(self, blocks: Iterable[pa.Table], plan: FeedPlan, start_step: int, rank: int, world: int) -> None:
        self.bad: Counter[str] = Counter()
        self._blocks = iter(blocks)
        self._plan, self._rank, self._world = plan, rank, world
        self._step, self._round = start_step, 0

    def __next__(self) -> MicroBatch:
        """The next micro-batch; FinalError where the block is not the one that stands here in the global order."""
        block = next(self._blocks)
        self._check(block)
        self.bad.update(reason for reasons in block["bad"].to_pylist() for reason in reasons)
        return micro_batch(block, self._plan)

    def _check(self, block: pa.Table) -> None:
        """Every block's positions are asserted: a reordered stream must never train."""
        plan = self._plan
        slot = self._round * self._world + self._rank
        first = (self._step * plan.atoms_per_step + slot) * plan.groups_per_atom
        real = slot < plan.atoms_per_step
        expected = [first + i if real else -1 for i in range(plan.groups_per_atom)]
        found = block["position"].to_pylist()
        if found != expected:
            raise FinalError(
                f"feed: rank {self._rank} of {self._world} expected the groups at positions {expected[0]} to "
                f"{expected[-1]} (step {self._step}) and got {found[:1]} to {found[-1:]} ({len(found)} groups): the "
                "stream was started at another step, or Ray Data changed its order (preserve_order off?)")
        self._round = (self._round + 1) % rounds(plan.atoms_per_step, self._world)
        self._step += self._round == 0


def micro_batch(block: pa.Table, plan: FeedPlan) -> MicroBatch:
    """A transformed block as tensors; padding (weight 0) has position -1 and no group ids.

    The arrays are copied once, since Ray's shared memory is read-only.
    """
    size, side, captions = plan.store().size, plan.feed.image_size, plan.feed.captions
    samples, position = block.num_rows * size, block["position"][0].as_py()
    tokens = (samples, captions, plan.max_tokens)

    def tensor(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(array_column(block, name).reshape(shape).copy())

    return MicroBatch(
        pixels=tensor("pixels", samples, 3, side, side),
        input_ids=tensor("input_ids", *tokens), attention_mask=tensor("attention_mask", *tokens),
        mlm_input_ids=tensor("mlm_input_ids", *tokens), mlm_labels=tensor("mlm_labels", *tokens),
        image_class=tensor("image_class", samples), caption_class=tensor("caption_class", samples, captions),
        weight=tensor("weight", samples), group_size=size, position=position, epoch=block["epoch"][0].as_py(),
        group_ids=() if position < 0 else tuple(block["group_id"].to_pylist()),
        sample_ids=() if position < 0 else tuple(i for ids in block["sample_ids"].to_pylist() for i in ids))


def local_batches(plan: FeedPlan, start_step: int, stop_step: int, rank: int = 0, world: int = 1) -> BatchIterator:
    """The micro-batches of `rank` at steps [start_step, stop_step), made in this process, one ahead in a thread."""
    raw = cut((read_window(plan, part, world) for part in window_slices(plan, start_step, stop_step)),
              plan.groups_per_atom)
    mine = islice(raw, rank, None, world)
    return BatchIterator(_ahead(transform_block(block, plan) for block in mine), plan, start_step, rank, world)


def _ahead(items: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same items, the next one being made while the consumer works on the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item
