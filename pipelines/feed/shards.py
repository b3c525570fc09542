"""The stream inside Ray Train: built at every start of the worker group, split to its ranks, read as micro-batches.

Apart from stream.py, so that the processes which read and transform never load Ray Train.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray.train
from ray.data import DataIterator, Dataset

from pipelines.feed.plan import FeedPlan
from pipelines.feed.stream import build_stream, whole_blocks

if TYPE_CHECKING:
    from ashnets.batch import MicroBatch


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
