"""The feed on Ray Data: plan -> one pipeline -> split to the workers, in one global order.

A block is what one rank runs in a few micro-batches: `reorder` puts the rows of all ranks' blocks in order by rank, the
strict repartition behind it cuts them into tasks of a few blocks each (Ray fuses the two, so that a batch is exactly
that many rows), and the transform hands on one block after another. Five settings keep the order and the blocks:
`preserve_order`, a limit on block sizes that every transformed block passes alone, strict repartition, batches of one
block in the transform, a whole number of blocks of every rank. Ray documents no order behind its splitter, so every
worker asserts all positions.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data
import ray.train
from ray.data import DataIterator, Dataset, TaskPoolStrategy

from pipelines.feed.memory import keep_freed_memory
from pipelines.feed.order import by_rank
from pipelines.feed.plan import FeedPlan
from pipelines.feed.source import GroupedStream
from pipelines.feed.transform import transform_block

if TYPE_CHECKING:
    from ashnets.batch import MicroBatch

READ_CPUS = 0.25
"""Reading waits for storage most of its time."""
TRANSFORM_CPUS = 0.5
"""So that a machine with one CPU left for the feed still decodes two blocks at once."""
WINDOWS_AHEAD = 2
"""Windows that are read at the same time; a window is held in memory whole."""


def build_stream(plan: FeedPlan, start_step: int, stop_step: int, world: int) -> Dataset:
    """The pipeline of steps [start_step, stop_step) for `world` ranks: block c is rank c mod world's.

    The last blocks are filled up with padding.
    """
    block_rows, task_blocks = plan.block_rows(world), plan.task_blocks(world)
    source = GroupedStream(plan, start_step, stop_step, world)
    stream = ray.data.read_datasource(source, override_num_blocks=source.num_windows(), num_cpus=READ_CPUS,
                                      compute=TaskPoolStrategy(size=WINDOWS_AHEAD))
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
    stream = stream.map_batches(transform, fn_kwargs={"plan": plan}, batch_size=block_rows, batch_format="pyarrow",
                                zero_copy_batch=True, num_cpus=TRANSFORM_CPUS)
    stream.set_name("train")
    return stream


def reorder(batch: pa.Table, plan: FeedPlan, world: int) -> pa.Table:
    """Rows of whole blocks of all ranks in stream order, to the same rows block by block."""
    order = by_rank(batch.num_rows, world, plan.atoms_per_block(world), plan.groups_per_atom)
    return batch if (order[1:] > order[:-1]).all() else batch.take(pa.array(order))


def transform(block: pa.Table, plan: FeedPlan) -> pa.Table:
    """`transform_block` in a process that does little else."""
    keep_freed_memory()
    return transform_block(block, plan)


class FeedDataConfig(ray.train.DataConfig):
    """Ray Train's data configuration: builds the streams anew at every start of the worker group.

    `start_step` is called then, and gives the step that the group will resume from. The datasets that the trainer
    was given only lend their names, those of all the plan's streams.
    """

    def __init__(self, plan: FeedPlan, start_step: Callable[[], int], stop_step: int) -> None:
        super().__init__()
        self._plan = plan
        self._start_step = start_step
        self._stop_step = stop_step

    def configure(self, datasets: dict[str, Dataset], world_size: int, worker_handles: list[Any] | None,
                  worker_node_ids: list[str] | None, **kwargs: Any) -> list[dict[str, DataIterator]]:
        """One iterator a rank and stream."""
        output: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, (first, last) in self._plan.streams(self._start_step(), self._stop_step).items():
            stream = build_stream(self._plan, first, last, world_size)
            for rank, part in enumerate(stream.streaming_split(world_size, equal=False)):
                output[rank][name] = part
        return output


def train_batches(plan: FeedPlan, start_step: int, stop_step: int, rank: int, world: int) -> Iterator[MicroBatch]:
    """Inside a Ray Train worker: the micro-batches of `rank` at steps [start_step, stop_step).

    Raises FinalError where Ray Data delivers anything else than the global order.
    """
    # Here and not above, so that the process which builds the stream never loads torch.
    from pipelines.feed.batches import micro_batches

    for name, (first, last) in plan.streams(start_step, stop_step).items():
        blocks = whole_blocks(ray.train.get_dataset_shard(name))
        yield from micro_batches(blocks, plan, first, last, rank, world)


def whole_blocks(shard: DataIterator) -> Iterator[pa.Table]:
    """The blocks of one rank's shard as they are; Ray fetches the next one in a thread, whatever `prefetch_batches` is,
    and with any it would hold back the first block until the second is there."""
    return iter(shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
