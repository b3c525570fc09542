"""Transformed blocks to micro-batches, and the whole feed in this process: the same plan and transform without Ray."""
from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import pyarrow as pa
import torch

from ashnets.batch import MicroBatch
from pipelines.feed.blocks import atoms
from pipelines.feed.plan import FeedPlan as FeedPlan
from pipelines.feed.plan import feed_plan as feed_plan
from pipelines.feed.source import cut, read_window, window_slices
from pipelines.feed.transform import array_column, transform_block


def micro_batches(blocks: Iterable[pa.Table], plan: FeedPlan, start_step: int, stop_step: int, rank: int,
                  world: int) -> Iterator[MicroBatch]:
    """What `rank` of `world` runs at steps [start_step, stop_step), out of its transformed blocks.

    Raises FinalError where a block is not what stands there in the global order.
    """
    return (micro_batch(atom, plan) for atom in atoms(blocks, plan, start_step, stop_step, rank, world))


def micro_batch(block: pa.Table, plan: FeedPlan) -> MicroBatch:
    """The transformed rows of a micro-batch as tensors; ids only of groups that count (padding has none).

    The pixels, nearly all of its bytes, stay where Ray's shared memory holds them: they may be read, never written.
    """
    size, side, captions = plan.store().size, plan.feed.image_size, plan.feed.captions
    positions = block["position"].to_pylist()
    samples, counted = block.num_rows * size, sum(map(plan.counts, positions))
    sample_ids = [i for ids in block["sample_ids"].slice(0, counted).to_pylist() for i in ids]
    bad = [(s["sample_id"], s["reason"]) for group in block["bad"].slice(0, counted).to_pylist() for s in group]
    tokens = (samples, captions, plan.max_tokens)

    def tensor(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(array_column(block, name).reshape(shape).copy())

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        pixels = torch.from_numpy(array_column(block, "pixels").reshape(samples, 3, side, side))
    return MicroBatch(
        pixels=pixels,
        input_ids=tensor("input_ids", *tokens), attention_mask=tensor("attention_mask", *tokens),
        mlm_input_ids=tensor("mlm_input_ids", *tokens), mlm_labels=tensor("mlm_labels", *tokens),
        image_class=tensor("image_class", samples), caption_class=tensor("caption_class", samples, captions),
        weight=tensor("weight", samples), group_size=size, position=positions[0], epoch=block["epoch"][0].as_py(),
        group_ids=tuple(block["group_id"].slice(0, counted).to_pylist()), sample_ids=tuple(sample_ids), bad=tuple(bad))


def local_batches(plan: FeedPlan, start_step: int, stop_step: int, rank: int = 0,
                  world: int = 1) -> Iterator[MicroBatch]:
    """The micro-batches of `rank` at steps [start_step, stop_step), made in this process, one ahead in a thread."""
    windows = (read_window(plan, part, world) for part in window_slices(plan, start_step, stop_step))
    raw = cut(chain.from_iterable(windows), plan.groups_per_atom)
    mine = islice(raw, rank, None, world)
    return micro_batches(_ahead(transform_block(block, plan) for block in mine), plan, start_step, stop_step, rank,
                         world)


def _ahead(items: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same items, the next one being made while the consumer works on the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item
