"""One optimizer step of one rank: its micro-batches, the means over all ranks, the update."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from ashnets.batch import MicroBatch
from ashnets.tasks.pretraining import PretrainingOutput
from pipelines.training.engine import Engine, sum_over_ranks
from pipelines.training.job import TrainingJob
from pipelines.training.lease import Order
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
    bad: int
    """Samples of the whole step, on all ranks, in whose place a mate stood."""
    nonfinite: Literal["", "loss", "gradient"] = ""
    """Where a number was not finite, so that the step was not applied; the same on every rank."""
    losses: tuple[dict[str, float], ...] = ()
    """Of a step that was not applied: the losses of each of `trained`."""
    order: Order = Order.GO_ON
    """What rank 0 was told while the step ran; the same on every rank."""


def over_all_ranks(outputs: list[PretrainingOutput], real: list[bool], atoms: int,
                   *counts: int) -> tuple[dict[str, float], list[int]]:
    """Means of losses and firing rates over the step's `atoms` real micro-batches on all ranks; sums of `counts`."""
    totals: dict[str, torch.Tensor] = {}
    for output, is_real in zip(outputs, real, strict=True):
        named = {"loss": output.loss} | {f"loss/{k}": v for k, v in output.losses.items()}
        named |= {f"firing_rate/{k}": v for k, v in output.firing_rates.items()}
        for name, value in named.items():
            value = value.detach().float().reshape(1)
            totals[name] = totals.get(name, torch.zeros_like(value)) + (value if is_real else torch.zeros_like(value))
    names = sorted(totals)
    here = torch.cat([*(totals[name] for name in names), totals["loss"].new_tensor(list(map(float, counts)))])
    sums = sum_over_ranks(here).tolist()
    means = {name: total / atoms for name, total in zip(names, sums, strict=False)}
    return means, [int(count) for count in sums[len(names):]]


def run_step(engine: Engine, batches: Iterator[MicroBatch], job: TrainingJob, step: int, rank: int,
             world: int, listen: Callable[[], Order] = lambda: Order.GO_ON) -> StepReport:
    """Run optimizer step number `step` (the first is 1); rank 0 asks `listen` what to do behind it.

    Where a loss or the gradient is not finite on any rank, weights, moments and buffers stay as they are, and the
    report says so.
    """
    began, waited = time.perf_counter(), 0.0
    outputs: list[PretrainingOutput] = []
    real: list[bool] = []
    trained: list[MicroBatch] = []
    lr = learning_rate(job.config.train, step - 1, job.schedule_steps)
    engine.set_learning_rate(lr)
    engine.atoms = job.plan.real_atoms(step - 1)
    engine.statistics.begin_step()
    for turn in range(engine.rounds):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        real.append(turn * world + rank < engine.atoms)
        outputs.append(engine.forward_backward(batch, real=real[-1], progress=(step - 1) / job.schedule_steps))
        trained += [batch] if real[-1] else []
        if turn < engine.rounds - 1:
            engine.step()
    means, (bad, told) = over_all_ranks(outputs, real, engine.atoms, sum(len(batch.bad) for batch in trained),
                                        listen() if rank == 0 else 0)
    applied = engine.step()
    if applied:
        engine.statistics.end_step()
        engine.remember(outputs)
    else:
        engine.statistics.cancel_step()
    grad_norm, seconds = engine.gradient_norm(), time.perf_counter() - began
    if applied:
        return StepReport(step, means, lr, grad_norm, seconds, waited, trained, bad, order=Order(told))
    losses = tuple(losses_of(output) for output, is_real in zip(outputs, real, strict=True) if is_real)
    found: Literal["loss", "gradient"] = "gradient" if math.isfinite(means["loss"]) else "loss"
    return StepReport(step, means, lr, grad_norm, seconds, waited, trained, bad, found, losses, Order(told))


def losses_of(output: PretrainingOutput) -> dict[str, float]:
    """The losses of one micro-batch, their sum under `loss`."""
    return {"loss": output.loss.item()} | {name: value.item() for name, value in output.losses.items()}
