"""The feed on Ray Data: plan -> one pipeline -> split to the workers, in one global order.

A block is what one rank runs in a few micro-batches: `reorder` puts the rows of all ranks' blocks in order by rank, the
strict repartition behind it cuts them into tasks of a few blocks each (Ray fuses the two, so that a batch is exactly
that many rows), and the transform hands on one block after another. Four settings keep the order and the blocks:
`preserve_order`, a limit on block sizes that every transformed block passes alone, strict repartition, a whole number
of blocks of every rank. Ray documents no order behind its splitter, so every worker asserts all positions.
"""
from __future__ import annotations

import math
from collections.abc import Iterator

import pyarrow as pa
import ray.data
from ray.data import DataIterator, Dataset, TaskPoolStrategy

from pipelines.feed.memory import keep_freed_memory
from pipelines.feed.order import by_rank
from pipelines.feed.plan import FeedPlan
from pipelines.feed.source import GroupedStream
from pipelines.feed.transform import transform_block

READ_CPUS = 0.25
"""Reading waits for storage most of its time."""
TRANSFORM_CPUS = 0.5
"""So that a machine with one CPU left for the feed still makes two blocks at once."""
WINDOWS_AHEAD = 2
"""Windows that are read at the same time; a window is held in memory whole."""
READERS = {"env_vars": {"MIMALLOC_PURGE_DELAY": "10000"}}
"""Processes that read keep a window's memory, of hundreds of megabytes, for the next one: Arrow's allocator waits for
ten seconds instead of ten milliseconds before it gives freed memory back to the kernel, which zeroes it anew. Another
environment also means other processes, so that those that transform do not hold so much."""


def build_stream(plan: FeedPlan, start_step: int, stop_step: int, world: int) -> Dataset:
    """The pipeline of steps [start_step, stop_step) for `world` ranks: block c is rank c mod world's.

    The last blocks are filled up with padding.
    """
    block_rows, task_blocks = plan.block_rows(world), plan.task_blocks(world)
    source = GroupedStream(plan, start_step, stop_step, world)
    stream = ray.data.read_datasource(source, override_num_blocks=source.num_windows(), num_cpus=READ_CPUS,
                                      compute=TaskPoolStrategy(size=WINDOWS_AHEAD), runtime_env=READERS)
    context = stream.context
    # A little less than a block, whose ids and classes come on top: Ray hands on every one by itself as soon as it is
    # made, where without a limit it would join all that a task makes.
    context.target_max_block_size = block_rows * plan.group_bytes()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    stream = stream.map_batches(reorder, fn_kwargs={"plan": plan, "world": world},
                                batch_size=math.lcm(task_blocks, world) * block_rows, batch_format="pyarrow",
                                zero_copy_batch=True)
    stream = stream.repartition(target_num_rows_per_block=task_blocks * block_rows, strict=True)
    stream = stream.map_batches(transform, fn_kwargs={"plan": plan, "rows": block_rows}, batch_size=None,
                                batch_format="pyarrow", zero_copy_batch=True, num_cpus=TRANSFORM_CPUS)
    stream.set_name("train")
    return stream


def reorder(batch: pa.Table, plan: FeedPlan, world: int) -> pa.Table:
    """Rows of whole blocks of all ranks in stream order, to the same rows block by block."""
    order = by_rank(batch.num_rows, world, plan.atoms_per_block(world), plan.groups_per_atom)
    return batch if (order[1:] > order[:-1]).all() else batch.take(pa.array(order))


def transform(task: pa.Table, plan: FeedPlan, rows: int) -> Iterator[pa.Table]:
    """`transform_block` for every `rows` rows of a task, in a process that does little else.

    For every batch of `rows` rows Ray would copy all that is left of the task, encoded images included.
    """
    keep_freed_memory()
    for first in range(0, task.num_rows, rows):
        yield transform_block(task.slice(first, rows), plan)


def whole_blocks(shard: DataIterator) -> Iterator[pa.Table]:
    """The blocks of one rank's shard as they are; Ray fetches the next one in a thread, whatever `prefetch_batches` is,
    and with any it would hold back the first block until the second is there."""
    return iter(shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
