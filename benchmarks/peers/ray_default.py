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

from benchmarks.peers.measure import WORKERS, OnePass, arrays, consume, files, main
from cluster.connection import connect
from pipelines.feed.plan import FeedPlan


@ray.remote(num_cpus=0)
class Worker:
    """A training process of one rank."""

    def consume(self, shard: DataIterator, plan: FeedPlan, groups: int, began: float) -> dict[str, Any]:
        """Consume the data set."""
        torch.set_num_threads(1)
        return consume(shard.iter_torch_batches(batch_size=plan.groups_per_atom), plan, groups, began)


def transform(rows: pa.Table, plan: FeedPlan) -> dict[str, Any]:
    """The feed's transform."""
    return arrays(rows, plan)


def start(plan: FeedPlan) -> OnePass:
    """Passes in a Ray that is up."""
    os.environ["RAY_DATA_USE_DATASOURCE_V2"] = "1"  # Ray's default
    connect(cpus=WORKERS)
    worker = Worker.remote()

    def one_pass(groups: int) -> dict[str, Any]:
        began = time.monotonic()
        rows = ray.data.read_parquet(files(plan, groups))
        [shard] = rows.map_batches(transform, fn_kwargs={"plan": plan},
                                   batch_format="pyarrow").streaming_split(1, equal=True)
        return ray.get(worker.consume.remote(shard, plan, groups, began))

    return one_pass


if __name__ == "__main__":
    main(start)
