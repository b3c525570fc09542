"""This project's feed: the Ray Data stream, split to a worker process as Ray Train splits it."""
from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray.data import DataIterator

from benchmarks.peers.measure import WORKERS, Batch, OnePass, consume, main
from cluster.connection import connect
from pipelines.feed.batches import micro_batches
from pipelines.feed.plan import FeedPlan
from pipelines.feed.stream import build_stream, whole_blocks


@ray.remote(num_cpus=0)
class Worker:
    """A training process of one rank."""

    def consume(self, shard: DataIterator, plan: FeedPlan, groups: int, began: float) -> dict[str, Any]:
        """Consume the stream."""
        torch.set_num_threads(1)
        return consume(self._batches(shard, plan, groups // plan.groups_per_atom), plan, groups, began)

    def _batches(self, shard: DataIterator, plan: FeedPlan, steps: int) -> Iterator[Batch]:
        for batch in micro_batches(whole_blocks(shard), plan, 0, steps, 0, 1):
            yield {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def start(plan: FeedPlan) -> OnePass:
    """Passes in a Ray that is up."""
    connect(cpus=WORKERS)
    worker = Worker.remote()

    def one_pass(groups: int) -> dict[str, Any]:
        began = time.monotonic()
        [shard] = build_stream(plan, 0, groups // plan.groups_per_atom, 1).streaming_split(1, equal=False)
        return ray.get(worker.consume.remote(shard, plan, groups, began))

    return one_pass


if __name__ == "__main__":
    main(start)
