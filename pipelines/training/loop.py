"""The training loop of one rank: step, record, validate, checkpoint; from the resumed step to where it stops."""
from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from ashnets.batch import MicroBatch
from pipelines.evaluation.held_out import HeldOut
from pipelines.training.bad_share import BadShare
from pipelines.training.engine import Engine
from pipelines.training.job import TrainingJob
from pipelines.training.lease import Fenced, Order, order
from pipelines.training.nonfinite import NonFiniteSteps
from pipelines.training.recorder import MetricsRecorder, SampleRecorder
from pipelines.training.retention import recall
from pipelines.training.saver import Saver
from pipelines.training.stage_models import StageModels
from pipelines.training.step import run_step
from pipelines.training.watchdog import Watchdog


def train(engine: Engine, batches: Iterator[MicroBatch], job: TrainingJob, held_out: HeldOut, start_step: int,
          seconds: float, rank: int, world: int, watchdog: Watchdog) -> int:
    """Train from `start_step` finished steps to `job.stop_step`; `seconds` were trained before.

    Returns the step reached: an earlier one, behind a checkpoint, where the driver was preempted. Raises Fenced where
    another launch has taken the run over.
    """
    began = time.monotonic() - seconds
    settings = job.config
    metrics = MetricsRecorder(job, start_step) if rank == 0 else None
    samples = SampleRecorder(job.run, rank, job.attempt, groups=settings.feed.record_samples)
    nonfinite, bad_share = NonFiniteSteps(job, rank), BadShare(settings.feed.max_bad_share)
    saver, score = Saver(engine, job, rank, world), None
    stage_models = StageModels(engine, job, rank, world, watchdog)
    step = start_step
    for step in range(start_step + 1, job.stop_step + 1):
        saver.check()
        stage_models.before(step)
        last = step == job.stop_step
        report = run_step(engine, batches, job, step, rank, world, partial(order, job.run, job.attempt))
        watchdog.step()
        if report.order is Order.FENCED:
            raise Fenced(f"step {step}: another launch has taken the run over")
        stops = report.order is Order.STOP
        samples.step(step, report.trained)
        if metrics:
            metrics.step(report, last or stops)
        nonfinite.step(report)
        bad_share.step(report.bad, job.samples(step) - job.samples(step - 1))
        stage_models.after(step)
        every = settings.train.validate_every
        if every and step % every == 0 and not last:
            with watchdog.slow():
                values = held_out.validate(engine.model, rank, world).metrics
            score = max((s for s in (score, recall(values)) if s is not None), default=None)
            if metrics:
                metrics.write(step, values)
        if last or stops or (step % settings.checkpoint.every_steps == 0 and not report.nonfinite):
            engine.check_finite(step)
            with watchdog.slow():
                saver.save(step, time.monotonic() - began, score)
            score = None
        if stops:
            break
    with watchdog.slow():
        saver.wait()
    for recorder in (metrics, samples):
        if recorder:
            recorder.close()
    return step
