"""The peer of recovery.py: `python -m benchmarks.peers.bare_train RUN GROUPS` trains RUN's model as Ray's guide shows.

DistributedDataParallel, Ray Data's default path, Ray's own checkpoints, restarts by FailureConfig; nothing of ours but
the model, its groups and the micro-batches that it is fed. `RUN/bare.jsonl` has a line for every start of the worker
group, with its process ids, and one for every step.
"""
from __future__ import annotations

import json
import os
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import ray.data
import ray.train
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.connection import connect

CHECKPOINT_EVERY, RESTARTS = 3, 3


def train_loop(settings: dict[str, Any]) -> None:
    """One worker, for ever."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from pipelines.feed.batches import local_batches
    from pipelines.feed.plan import feed_plan
    from pipelines.resume import load_config
    from pipelines.training.model import build_model
    from pipelines.training.randomness import seed_micro_batch

    run = Path(settings["run"])
    config = load_config(run)
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    model = DistributedDataParallel(build_model(config).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.lr)
    step = 0
    last = ray.train.get_checkpoint()
    if last:
        with last.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    pids = [0] * world
    dist.all_gather_object(pids, os.getpid())
    note(run, rank, {"start": step, "pids": pids})
    rows = cycle(ray.train.get_dataset_shard("train").iter_batches(batch_size=config.train.groups_per_atom))
    batches = cycle(list(local_batches(feed_plan(config, settings["groups"]), 0, 4, rank, world)))
    while True:
        next(rows)
        batch = next(batches)
        model(batch, 0.0, seed_micro_batch(config.run.seed, batch.position)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        note(run, rank, {"step": step})
        with tempfile.TemporaryDirectory() as folder:
            if step % CHECKPOINT_EVERY == 0 and rank == 0:
                torch.save({"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step},
                           Path(folder) / "state.pt")
            ray.train.report({"step": step}, checkpoint=Checkpoint(folder)
                             if step % CHECKPOINT_EVERY == 0 and rank == 0 else None)


def note(run: Path, rank: int, line: dict[str, Any]) -> None:
    """A line of rank 0's record."""
    if rank == 0:
        with open(run / "bare.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def main(run: Path, groups: Path) -> None:
    """Train the model of `run` on its groups."""
    connect(2)
    TorchTrainer(
        train_loop, train_loop_config={"run": str(run), "groups": str(groups)},
        datasets={"train": ray.data.read_parquet([str(path) for path in sorted(groups.glob("part-*.parquet"))])},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            name="bare", storage_path=tempfile.mkdtemp(dir=run),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}},
            failure_config=FailureConfig(max_failures=RESTARTS)),
    ).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
