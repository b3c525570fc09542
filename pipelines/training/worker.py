"""What every Ray Train worker runs: build the model, resume, train, export."""
from __future__ import annotations

import os

import ray.train
import torch
import torch.distributed as dist

from cluster import comm_op
from pipelines.evaluation.held_out import HeldOut
from pipelines.feed.shards import train_batches
from pipelines.training.engine import Engine
from pipelines.training.failure import final_errors
from pipelines.training.from_rest import export
from pipelines.training.initial import initial_model
from pipelines.training.job import TrainingJob
from pipelines.training.loop import train
from pipelines.training.restore import restore
from pipelines.training.run_directory import LineWriter, supersede
from pipelines.training.watchdog import Watchdog


def train_worker(settings: dict[str, TrainingJob]) -> None:
    """Train `settings["job"]` on this rank."""
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    job = settings["job"]
    with final_errors(rank), Watchdog(job.run, job.attempt, rank, job.config.scaling.stall_timeout_s) as watchdog:
        _train(job, rank, world, watchdog)


def _train(job: TrainingJob, rank: int, world: int, watchdog: Watchdog) -> None:
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    if job.device == "cpu":
        comm_op.load()
    device = ray.train.torch.get_device() if job.device == "cuda" else torch.device("cpu")
    engine = Engine(initial_model(job.config, job.run), job.config.train, zero_stage=job.config.scaling.zero_stage,
                    world_size=world, seed=job.config.run.seed, device=device)
    found = restore(engine, job, rank)
    start_step, seconds = (found.step, found.seconds) if found else (0, 0.0)
    if rank == 0:
        supersede(job.run, start_step)
        starts = LineWriter(job.run / "starts.jsonl")
        starts.write({"attempt": job.attempt, "step": start_step, "world_size": world})
        starts.close()
    dist.barrier()
    held_out = HeldOut(job.config, job.store, job.store_version, device)
    engine.model.train()
    batches = train_batches(job.plan, start_step, job.stop_step, rank, world)
    reached = train(engine, batches, job, held_out, start_step, seconds, rank, world, watchdog)
    if reached >= job.stop_step:
        with watchdog.slow():
            export(engine, job, reached, rank, world)
