"""The models that later stages of the groups are built from: written at fixed steps of training, waited for at others.

The workers write `<run>/stages/stage-NNNN/model/model.safetensors`; the driver builds the stage from it meanwhile
(pipelines/grouping/stage_builder.py).
"""
from __future__ import annotations

import time

import torch
import torch.distributed as dist

from pipelines.disk import full_disk_told
from pipelines.feed.stages import Stages
from pipelines.model_source import WEIGHTS
from pipelines.training.engine import Engine
from pipelines.training.from_rest import recalibrate_from_rest
from pipelines.training.job import TrainingJob
from pipelines.training.watchdog import Watchdog

POLL_SECONDS = 0.5


class StageModels:
    """One rank's part; the same calls on every rank."""

    def __init__(self, engine: Engine, job: TrainingJob, rank: int, world: int, watchdog: Watchdog) -> None:
        self._engine, self._job, self._watchdog = engine, job, watchdog
        self._rank, self._world = rank, world
        self._steps = model_steps(job)

    def before(self, step: int) -> None:
        """Wait until the groups that optimizer step `step` (the first is 1) trains on are there."""
        stages = self._job.plan.stages
        if stages is None:
            return
        stage = stages.number((self._job.position(step) - 1) // self._job.groups)
        while stage and not stages.ready(stage):
            with self._watchdog.slow():
                time.sleep(POLL_SECONDS)

    def after(self, step: int) -> None:
        """Write the model after `step` optimizer steps where a stage is to be built from it and has none yet."""
        for stage, model_step in self._steps.items():
            if step == model_step:
                self._write(stage, step)

    @torch.no_grad()
    def _write(self, stage: int, step: int) -> None:
        assert self._job.plan.stages is not None
        path = self._job.plan.stages.model(stage) / WEIGHTS
        there = torch.tensor([float(path.exists())], device=self._engine.device)
        if dist.is_initialized():
            dist.broadcast(there, 0)
        if there.item():
            return
        with self._watchdog.slow():
            before = [buffer.clone() for buffer in self._engine.model.buffers()]
            recalibrate_from_rest(self._engine, self._job, self._rank, self._world)
            with full_disk_told(path.parent, "a model that groups are built from", None):
                self._engine.export_weights(path, step)
            for buffer, value in zip(self._engine.model.buffers(), before, strict=True):
                buffer.copy_(value)


def model_steps(job: TrainingJob) -> dict[int, int]:
    """Stage -> optimizer steps of its model, for all stages that begin before training ends."""
    stages: Stages | None = job.plan.stages
    found: dict[int, int] = {}
    if stages is not None:
        while stages.begins(len(found) + 1, job.groups) < job.position(job.schedule_steps):
            found[len(found) + 1] = stages.model_step(len(found) + 1, job.groups, job.plan.step_groups)
    return found
