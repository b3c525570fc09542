"""Spoils steps of tiny trainings in real processes for test_nonfinite.py, which launches it and reads what it writes.

`python -m tests.pipelines.training.nonfinite_ranks FOLDER`: two ranks train at every ZeRO stage; rank 1 alone, in the
first of its micro-batches, makes a number not finite at each site in turn. Rank 0 writes FOLDER/zero<stage>.pt.
"""
from __future__ import annotations

import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import logger
from torch import Tensor, nn

from cluster import comm_op
from pipelines.config import CheckpointConfig
from pipelines.errors import FinalError
from pipelines.training import engine as engines
from pipelines.training.engine import Engine
from pipelines.training.lease import Lease
from pipelines.training.loop import train
from pipelines.training.nonfinite import NonFiniteSteps
from pipelines.training.step import StepReport, run_step
from pipelines.training.watchdog import Watchdog
from tests.pipelines.training.equivalence_ranks import Case, Training, cut_small_weights_too, run_world, write_data

GOOD = 2
"""Steps before the spoilt ones, so that there are moments, a memory and a dictionary to spoil."""


def once(spoil: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`spoil` on the first call, then nothing."""
    calls: list[bool] = []

    def first(value: Tensor) -> Tensor:
        calls.append(True)
        return spoil(value) if len(calls) == 1 else value
    return first


def with_one(value: float) -> Callable[[Tensor], Tensor]:
    """A copy of a tensor whose first number is `value`."""
    def replaced(tensor: Tensor) -> Tensor:
        flat = tensor.clone().flatten()
        flat[0] = value
        return flat.view_as(tensor)
    return replaced


def spoilt_gradient(tensor: Tensor) -> Tensor:
    """The same numbers; their gradient has an infinity."""
    tensor.register_hook(lambda gradient: with_one(math.inf)(gradient))
    return tensor


@contextmanager
def spoilt(engine: Engine, site: str) -> Iterator[None]:
    """One number that is not finite at `site`, in the first micro-batch of the block."""
    model = engine.model
    spoil = once({"input": with_one(math.nan), "forward": with_one(math.inf), "gradient": spoilt_gradient,
                  "loss": lambda loss: loss + math.inf}[site])  # whose gradient is finite
    backbone = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in model.modules() if isinstance(module, nn.LayerNorm))
    hook = {
        "input": lambda: backbone.register_forward_pre_hook(lambda module, inputs: (spoil(inputs[0]), *inputs[1:])),
        "forward": lambda: norm.register_forward_hook(lambda module, inputs, output: spoil(output)),
        "loss": lambda: model.itc.register_forward_hook(lambda module, inputs, output: spoil(output)),
        "gradient": lambda: norm.register_forward_hook(lambda module, inputs, output: spoil(output)),
    }[site]()
    try:
        yield
    finally:
        hook.remove()


def one_step(training: Training, nonfinite: NonFiniteSteps | None = None) -> StepReport:
    """The next step."""
    training.step += 1
    report = run_step(training.engine, training.batches, training.job, training.step, training.rank,
                      training.case.world)
    if nonfinite:
        nonfinite.step(report)
    return report


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What differs in any bit."""
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


def first_state(engine: Engine) -> tuple[Tensor, dict[str, Tensor]]:
    """The first weights of this rank's optimizer and their moments."""
    optimizer = getattr(engine._optimizer, "optimizer", engine._optimizer)
    return next(iter(optimizer.state.items()))


def spoilt_update(training: Training, kind: str) -> str:
    """What `check_finite` says where something of rank 1's is not finite."""
    weights, state = first_state(training.engine)
    target = {"moments": state["exp_avg_sq"], "weights": weights.data,
              "buffers": next(b for b in training.engine.model.buffers() if b.is_floating_point() and b.numel())}[kind]
    before = target.clone()
    if training.rank == 1:
        target.view(-1)[0] = math.inf
    try:
        training.engine.check_finite(3)
    except FinalError as error:
        return str(error)
    finally:
        target.copy_(before)
    return "nothing"


def run_stage(stage: int, rank: int, folder: Path) -> None:
    """Train, spoil a step at each site, train on; and the same without the spoilt steps."""
    case = Case("dictionary", 2, stage)
    training = Training(case, rank, folder)
    training.job.run.mkdir(parents=True, exist_ok=True)
    nonfinite = NonFiniteSteps(training.job, rank)
    for _ in range(GOOD):
        one_step(training, nonfinite)
    before = training.state()
    results: dict[str, Any] = {"sites": {}}
    sites = ("input", "forward", "loss", "gradient")
    for site in sites:
        with spoilt(training.engine, site) if rank == 1 else nullcontext():
            nonfinite.in_a_row = 0
            report = one_step(training, nonfinite)
        results["sites"][site] = {"found": report.nonfinite, "differs": differing(training.state(), before),
                                  "step": report.step, "positions": [b.position for b in report.trained]}
    after = one_step(training, nonfinite)
    results["after"] = {"found": after.nonfinite, "loss": after.means["loss"], "grad_norm": after.grad_norm}
    spoilt_run = training.state()
    results["checks"] = {kind: spoilt_update(training, kind) for kind in ("moments", "weights", "buffers")}
    training.engine.check_finite(3)
    ranks = [None, None]
    dist.all_gather_object(ranks, results)
    training.engine._engine.destroy()

    plain = Training(case, rank, folder)
    for _ in range(GOOD):
        one_step(plain)
    plain.step += len(sites)
    for _ in range(len(sites) * plain.engine.rounds):
        next(plain.batches)
    expected = one_step(plain)
    results["control"] = {"loss": expected.means["loss"], "grad_norm": expected.grad_norm,
                          "differs": differing(spoilt_run, plain.state())}
    results["rank 1"] = ranks[1]
    plain.engine._engine.destroy()
    if rank == 0:
        torch.save(results, folder / f"zero{stage}.pt")


def end_of_the_launch(rank: int, folder: Path) -> None:
    """Every step spoilt: what ends the launch, and when."""
    training = Training(Case("spikes", 2, 2), rank, folder)
    training.job.run.mkdir(parents=True, exist_ok=True)
    nonfinite = NonFiniteSteps(training.job, rank)
    told = ""
    try:
        for _ in range(9):
            with spoilt(training.engine, "loss") if rank == 1 else nullcontext():
                one_step(training, nonfinite)
    except FinalError as error:
        told = str(error)
    everyones = ["", ""]
    dist.all_gather_object(everyones, told)
    if rank == 0:
        torch.save({"told": everyones, "step": training.step}, folder / "end.pt")
    training.engine._engine.destroy()


def end_before_the_checkpoint(rank: int, folder: Path) -> None:
    """The training loop with a checkpoint behind every step; the second update spoils a moment on rank 1."""
    training = Training(Case("frozen", 2, 2), rank, folder)
    config = replace(training.job.config, checkpoint=CheckpointConfig(every_steps=1),
                     train=replace(training.job.config.train, validate_every=0))
    job = replace(training.job, config=config, stop_step=4)
    applied: list[bool] = []
    step = training.engine.step

    def spoiling() -> bool:
        if step():
            applied.append(True)
            if len(applied) == 2 and rank == 1:
                first_state(training.engine)[1]["exp_avg_sq"].view(-1)[0] = math.inf
            return True
        return False

    training.engine.step = spoiling  # type: ignore[method-assign]
    job.run.mkdir(exist_ok=True)
    told = ""
    with Lease(job.run) if rank == 0 else nullcontext():
        dist.barrier()
        try:
            with Watchdog(job.run, job.attempt, rank, 60.0) as watchdog:
                train(training.engine, training.batches, job, None, 0, 0.0, rank, 2, watchdog)  # type: ignore
        except FinalError as error:
            told = str(error)
        everyones = ["", ""]
        dist.all_gather_object(everyones, told)
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint-"):
            thread.join()  # a commit that was under way is through
    if rank == 0:
        torch.save({"told": everyones, "checkpoints": sorted(p.name for p in (job.run / "checkpoints").glob("step-*"))},
                   folder / "spoilt.pt")
    training.engine._engine.destroy()


def run_rank(rank: int, port: int, folder: Path) -> None:
    """One of two processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    comm_op.load()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for stage in range(4):
        run_stage(stage, rank, folder)
    end_of_the_launch(rank, folder)
    end_before_the_checkpoint(rank, folder)
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Write the data, run both ranks."""
    engines.deepspeed_config = cut_small_weights_too
    logger.setLevel("CRITICAL")
    run_world(write_data, [(folder,)])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_world(run_rank, [(rank, port, folder) for rank in range(2)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
