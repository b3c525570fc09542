"""The training loop of one rank: step, record, validate, checkpoint; from the resumed step to where it stops."""
from __future__ import annotations

import time
from collections.abc import Iterator

from ashnets.batch import MicroBatch
from pipelines.evaluation.held_out import HeldOut
from pipelines.training.engine import Engine
from pipelines.training.job import TrainingJob
from pipelines.training.nonfinite import NonFiniteSteps
from pipelines.training.recorder import MetricsRecorder, SampleRecorder
from pipelines.training.retention import recall
from pipelines.training.saver import Saver
from pipelines.training.step import run_step


def train(engine: Engine, batches: Iterator[MicroBatch], job: TrainingJob, held_out: HeldOut, start_step: int,
          seconds: float, rank: int, world: int) -> None:
    """Train from `start_step` finished steps to `job.stop_step`; `seconds` were trained before."""
    began = time.monotonic() - seconds
    settings = job.config
    metrics = MetricsRecorder(job, start_step) if rank == 0 else None
    samples = SampleRecorder(job.run, rank, job.attempt) if settings.feed.record_samples else None
    nonfinite = NonFiniteSteps(job, rank)
    saver, score = Saver(engine, job, rank, world), None
    for step in range(start_step + 1, job.stop_step + 1):
        saver.check()
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
            score = max((s for s in (score, recall(values)) if s is not None), default=None)
            if metrics:
                metrics.write(step, values)
        if last or (step % settings.checkpoint.every_steps == 0 and not report.nonfinite):
            engine.check_finite()
            saver.save(step, time.monotonic() - began, score)
            score = None
    saver.wait()
    for recorder in (metrics, samples):
        if recorder:
            recorder.close()
