"""The training loop of one rank: step, record, validate, checkpoint; from the resumed step to where it stops."""
from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import torch.distributed as dist

from ashnets.batch import MicroBatch
from pipelines.evaluation.held_out import HeldOut
from pipelines.training import checkpoint
from pipelines.training.engine import Engine
from pipelines.training.job import TrainingJob
from pipelines.training.nonfinite import NonFiniteSteps
from pipelines.training.recorder import MetricsRecorder, SampleRecorder
from pipelines.training.step import run_step


def save_checkpoint(engine: Engine, job: TrainingJob, step: int, rank: int, world: int, seconds: float) -> None:
    """Write and commit the checkpoint of `step`; a crash anywhere in it leaves the one before."""
    folder = checkpoint.temporary_folder(job.run, step, job.attempt)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier()
    engine.save(folder)
    dist.barrier()
    if rank == 0:
        checkpoint.commit(job.run, step=step, position=job.position(step), world_size=world,
                          zero_stage=job.config.scaling.zero_stage, attempt=job.attempt,
                          seed=job.config.run.seed, seconds=seconds)
        checkpoint.retain(job.run, job.config.checkpoint.keep)
    dist.barrier()


def train(engine: Engine, batches: Iterator[MicroBatch], job: TrainingJob, held_out: HeldOut, start_step: int,
          seconds: float, rank: int, world: int) -> None:
    """Train from `start_step` finished steps to `job.stop_step`; `seconds` were trained before."""
    began = time.monotonic() - seconds
    settings = job.config
    metrics = MetricsRecorder(job, start_step) if rank == 0 else None
    samples = SampleRecorder(job.run, rank, job.attempt) if settings.feed.record_samples else None
    nonfinite = NonFiniteSteps(job, rank)
    for step in range(start_step + 1, job.stop_step + 1):
        last = step == job.stop_step
        report = run_step(engine, batches, job, step, rank, world)
        if samples:
            samples.step(step, report.trained)
        if metrics:
            metrics.step(report, last)
        nonfinite.step(report)
        every = settings.train.validate_every
        if every and step % every == 0 and not last:
            values = held_out.validate(engine.model, rank, world).metrics
            if metrics:
                metrics.write(step, values)
        if last or (step % settings.checkpoint.every_steps == 0 and not report.nonfinite):
            engine.check_finite()
            save_checkpoint(engine, job, step, rank, world, time.monotonic() - began)
    for recorder in (metrics, samples):
        if recorder:
            recorder.close()
