"""This project's feed: the Ray Data stream, split to a worker process as Ray Train splits it."""
from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray.data import DataIterator

from benchmarks.peers.measure import WORKERS, Batch, consume, main
from cluster.connection import connect
from pipelines.feed.batches import micro_batches
from pipelines.feed.plan import FeedPlan
from pipelines.feed.stream import build_stream, whole_blocks

WARM_UP_GROUPS = 128


@ray.remote(num_cpus=0)
class Worker:
    """A training process of one rank."""

    def run(self, shard: DataIterator, plan: FeedPlan, steps: int, began: float) -> dict[str, Any]:
        """Consume the stream."""
        torch.set_num_threads(1)
        return consume(self._batches(shard, plan, steps), plan, began)

    def warm_up(self, shard: DataIterator, plan: FeedPlan, steps: int) -> None:
        """Consume a short stream, so that Ray's processes are there and have imported everything."""
        for _ in self._batches(shard, plan, steps):
            pass

    def _batches(self, shard: DataIterator, plan: FeedPlan, steps: int) -> Iterator[Batch]:
        for batch in micro_batches(whole_blocks(shard), plan, 0, steps, 0, 1):
            yield {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def run(plan: FeedPlan) -> dict[str, Any]:
    """One epoch, in a Ray that is up."""
    connect(cpus=WORKERS)
    worker = Worker.remote()
    steps = WARM_UP_GROUPS // plan.groups_per_atom
    [shard] = build_stream(plan, 0, steps, 1).streaming_split(1, equal=False)
    ray.get(worker.warm_up.remote(shard, plan, steps))
    steps = plan.store().groups // plan.groups_per_atom
    began = time.monotonic()
    [shard] = build_stream(plan, 0, steps, 1).streaming_split(1, equal=False)
    return ray.get(worker.run.remote(shard, plan, steps, began))


if __name__ == "__main__":
    main(run)
