"""Ray Data as its guide shows it: read_parquet, map_batches with the feed's transform, iter_torch_batches.

No setting of ours but the niceness of the workers; the split is Ray Train's default.
"""
from __future__ import annotations

import os
import time
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import DataIterator

from benchmarks.peers.measure import WORKERS, arrays, consume, main
from cluster.connection import connect
from pipelines.feed.plan import FeedPlan

WARM_UP_GROUPS = 128


@ray.remote(num_cpus=0)
class Worker:
    """A training process of one rank."""

    def run(self, shard: DataIterator, plan: FeedPlan, began: float) -> dict[str, Any]:
        """Consume the data set."""
        torch.set_num_threads(1)
        return consume(shard.iter_torch_batches(batch_size=plan.groups_per_atom), plan, began)

    def warm_up(self, shard: DataIterator) -> None:
        """Consume a small data set, so that Ray's processes are there and have imported everything."""
        for _ in shard.iter_torch_batches():
            pass


def transform(rows: pa.Table, plan: FeedPlan) -> dict[str, Any]:
    """The feed's transform."""
    return arrays(rows, plan)


def run(plan: FeedPlan) -> dict[str, Any]:
    """One epoch, in a Ray that is up."""
    os.environ["RAY_DATA_USE_DATASOURCE_V2"] = "1"  # Ray's default
    connect(cpus=WORKERS)
    worker = Worker.remote()

    def split(data: ray.data.Dataset) -> DataIterator:
        [shard] = data.map_batches(transform, fn_kwargs={"plan": plan},
                                   batch_format="pyarrow").streaming_split(1, equal=True)
        return shard

    ray.get(worker.warm_up.remote(split(ray.data.read_parquet(plan.groups_path).limit(WARM_UP_GROUPS))))
    began = time.monotonic()
    return ray.get(worker.run.remote(split(ray.data.read_parquet(plan.groups_path)), plan, began))


if __name__ == "__main__":
    main(run)
