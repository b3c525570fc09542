"""What a checkpoint every 10 steps costs the step loop: `python -m benchmarks.checkpoints` (after `make pretrain`).

The demo's model in one process on its own data, 32 images a step. Blocks of 10 steps with a checkpoint in the
background, without any, and with one that the loop waits for take turns, in another order every round, and are compared
inside a round, so that what else the machine does meets all three. Writes benchmarks/results/checkpoints.json after
every round. About 4 minutes on 2 quiet cores.
"""
from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import cycle
from pathlib import Path

os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513"}

import torch
import torch.distributed as dist

from ashnets.batch import MicroBatch
from cluster import comm_op
from jobs import cli
from pipelines.code_version import code_version
from pipelines.config import PretrainConfig
from pipelines.feed.batches import local_batches
from pipelines.places import store_folder
from pipelines.pretraining import make_job
from pipelines.store.table import ImageTextStore
from pipelines.training import checkpoint
from pipelines.training.engine import Engine
from pipelines.training.initial import initial_model
from pipelines.training.job import TrainingJob
from pipelines.training.lease import Lease, Order
from pipelines.training.saver import Saver
from pipelines.training.step import run_step

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "checkpoints.json"
ROUNDS, BLOCK, EVERY = 9, 10, 10
WAYS = ("none", "background", "waited for")


class Run:
    """The demo's training in this process."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.step, self.copying = job, 0, []
        self.engine = Engine(initial_model(job.config, job.run), job.config.train, zero_stage=2, world_size=1,
                             seed=0, device=torch.device("cpu"))
        self.engine.model.train()
        self.saver = Saver(self.engine, job, rank=0, world=1)
        some = list(local_batches(job.plan, 0, 4, 0, 1))  # decoded once: the feed is not what is measured
        self.batches: Iterator[MicroBatch] = cycle(some)

    def block(self, way: str) -> float:
        """Seconds a step of one block; its last checkpoint is on the disk when it ends."""
        began = time.perf_counter()
        for number in range(BLOCK):
            self.step += 1
            run_step(self.engine, self.batches, self.job, self.step, 0, 1, lambda: Order.GO_ON)
            if way != "none" and number % EVERY == 0:
                before = time.perf_counter()
                self.saver.save(self.step, 0.0)
                self.copying.append(time.perf_counter() - before)
                if way == "waited for":
                    self.saver.wait()
        self.saver.wait()
        return (time.perf_counter() - began) / BLOCK


def demo_job(run: Path, attempt: int) -> TrainingJob:
    """The demo in small steps, with a schedule that is long enough."""
    config = cli.parse(PretrainConfig, ["train.schedule_steps=1000", "train.groups_per_atom=4"], description="",
                       defaults_file=cli.CONFIGS / "demo.yaml").config
    path = store_folder(config.data, REPOSITORY)
    groups = sorted(path.with_name(f"{path.name}.groups").glob("v*"))[-1]
    return make_job(config, run, attempt, path, ImageTextStore(path).version(), groups, 1000, "cpu")


def write(run: Run, seconds: dict[str, list[float]]) -> None:
    """Write the figures of the rounds so far."""
    newest = checkpoint.newest(run.job.run)
    assert newest is not None
    middle = {way: round(statistics.median(values), 4) for way, values in seconds.items()}
    RESULT.write_text(json.dumps({
        "step_seconds": middle, "all": {way: [round(value, 4) for value in values] for way, values in seconds.items()},
        "more_than_none": {way: round(statistics.median(
            a / b for a, b in zip(seconds[way], seconds["none"], strict=True)) - 1, 4) for way in WAYS[1:]},
        "copy_seconds": round(statistics.median(run.copying), 4), "every_steps": EVERY,
        "checkpoint_bytes": sum(size for size, _ in newest[1].files.values()), "load": round(os.getloadavg()[1], 1),
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "code": code_version()}, indent=1) + "\n")


def main() -> None:
    """Run the blocks, write the figures, print them."""
    comm_op.load()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    with tempfile.TemporaryDirectory() as folder, Lease(Path(folder) / "run") as lease:
        run = Run(demo_job(Path(folder) / "run", lease.attempt))
        run.block("none")  # warm
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(ROUNDS):
            for way in WAYS[number % len(WAYS):] + WAYS[:number % len(WAYS)]:
                seconds[way].append(run.block(way))
                print(f"step {run.step}, {way}: {seconds[way][-1]:.3f} s a step", flush=True)
            write(run, seconds)
    print(RESULT.read_text())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
