"""One optimizer step of one rank: its micro-batches, the means over all ranks, the update."""
from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from ashnets.batch import MicroBatch
from ashnets.tasks.pretraining import PretrainingOutput
from pipelines.training.engine import Engine, sum_over_ranks
from pipelines.training.job import TrainingJob
from pipelines.training.schedule import learning_rate


@dataclass(frozen=True)
class StepReport:
    """What one step measured. `means` holds `loss`, `loss/<task>` and `firing_rate/<layer>` over its real atoms."""

    step: int
    means: dict[str, float]
    lr: float
    grad_norm: float
    seconds: float
    data_wait: float
    trained: list[MicroBatch]
    """This rank's real micro-batches."""
    nonfinite: Literal["", "loss", "gradient"] = ""
    """Where a number was not finite, so that the step was not applied; the same on every rank."""
    losses: tuple[dict[str, float], ...] = ()
    """Of a step that was not applied: the losses of each of `trained`."""


def mean_over_atoms(outputs: list[PretrainingOutput], real: list[bool], atoms: int) -> dict[str, float]:
    """Means of losses and firing rates over the step's `atoms` real micro-batches on all ranks."""
    totals: dict[str, torch.Tensor] = {}
    for output, counts in zip(outputs, real, strict=True):
        named = {"loss": output.loss} | {f"loss/{k}": v for k, v in output.losses.items()}
        named |= {f"firing_rate/{k}": v for k, v in output.firing_rates.items()}
        for name, value in named.items():
            value = value.detach().float().reshape(1)
            totals[name] = totals.get(name, torch.zeros_like(value)) + (value if counts else torch.zeros_like(value))
    names = sorted(totals)
    summed = sum_over_ranks(torch.cat([totals[name] for name in names])) / atoms
    return dict(zip(names, summed.tolist(), strict=True))


def run_step(engine: Engine, batches: Iterator[MicroBatch], job: TrainingJob, step: int, rank: int,
             world: int) -> StepReport:
    """Run optimizer step number `step` (the first is 1).

    Where a loss or the gradient is not finite on any rank, weights, moments and buffers stay as they are, and the
    report says so.
    """
    train = job.config.train
    began, waited = time.perf_counter(), 0.0
    outputs: list[PretrainingOutput] = []
    real: list[bool] = []
    trained: list[MicroBatch] = []
    lr = learning_rate(train, step - 1, job.schedule_steps)
    engine.set_learning_rate(lr)
    engine.statistics.begin_step()
    for turn in range(engine.rounds):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        real.append(turn * world + rank < train.atoms_per_step)
        outputs.append(engine.forward_backward(batch, real=real[-1], progress=(step - 1) / job.schedule_steps))
        trained += [batch] if real[-1] else []
        if turn < engine.rounds - 1:
            engine.step()
    means = mean_over_atoms(outputs, real, train.atoms_per_step)
    applied = engine.step()
    if applied:
        engine.statistics.end_step()
        engine.remember(outputs)
    else:
        engine.statistics.cancel_step()
    grad_norm, seconds = engine.gradient_norm(), time.perf_counter() - began
    if applied:
        return StepReport(step, means, lr, grad_norm, seconds, waited, trained)
    losses = tuple(losses_of(output) for output, counts in zip(outputs, real, strict=True) if counts)
    found: Literal["loss", "gradient"] = "gradient" if math.isfinite(means["loss"]) else "loss"
    return StepReport(step, means, lr, grad_norm, seconds, waited, trained, found, losses)


def losses_of(output: PretrainingOutput) -> dict[str, float]:
    """The losses of one micro-batch, their sum under `loss`."""
    return {"loss": output.loss.item()} | {name: value.item() for name, value in output.losses.items()}
