"""Trains tiny ASH-Nets in real processes for test_equivalence.py, which launches it once and reads what it writes.

`python -m tests.pipelines.training.equivalence_ranks FOLDER [CASE ...]`: everything is imported once, then every world
forks its ranks, and they run all its cases one after the other. Rank 0 writes FOLDER/<case>.pt.
"""
from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import logger, safe_get_full_optimizer_state
from torch import Tensor

from ashnets.batch import MicroBatch
from ashnets.config import (
    AbstractConfig,
    BackboneConfig,
    FusionConfig,
    ITCConfig,
    ITMConfig,
    MLMConfig,
    ModelConfig,
    MVMConfig,
    STUAConfig,
    TasksConfig,
    TextConfig,
)
from ashnets.tasks.contrast import Embedded
from ashnets.tasks.itc import ITC
from cluster import comm_op
from pipelines.config import EvaluationConfig, FeedConfig, PretrainConfig, TrainConfig
from pipelines.evaluation.held_out import HeldOut
from pipelines.feed.batches import local_batches
from pipelines.feed.plan import feed_plan
from pipelines.store.table import ImageTextStore
from pipelines.training import engine as engines
from pipelines.training.engine import Engine, deepspeed_config
from pipelines.training.job import TrainingJob
from pipelines.training.model import build_model
from pipelines.training.randomness import seed_micro_batch
from pipelines.training.snapshot import write
from pipelines.training.step import run_step
from pipelines.training.worker import export
from tests.pipelines.feed.small_stores import VOCABULARY, encode, make_groups, write_groups, write_tokenizer
from tests.pipelines.small_run import make_store, scene_rows
from tests.pipelines.training.equivalence_cases import CASES, RESUMED, SAVED, STEPS, Case
from tests.pipelines.training.plain_training import train_plainly

GROUPS, GROUP_SIZE = 24, 3  # an epoch is three steps: the memory meets its own pictures again
CPU = torch.device("cpu")


def settings(case: Case, tokenizer: Path) -> PretrainConfig:
    """The configuration of a case: dropout is on, gradients are clipped at every step, all kinds of weights train."""
    frozen, gather, with_memory = case.task == "frozen", case.task == "gather", case.task == "dictionary"
    tasks = TasksConfig(
        itc=ITCConfig(memory=60 if with_memory else 0, gather=gather), mlm=MLMConfig(mask_rate=0.3),
        mvm=MVMConfig(target="dictionary" if with_memory else "spikes", dictionary_size=8, dictionary_decay=0.9))
    if gather:
        tasks = replace(tasks, itm=ITMConfig(weight=0), mlm=MLMConfig(weight=0), mvm=MVMConfig(weight=0),
                        stua=STUAConfig(weight=0))
    return PretrainConfig(
        model=ModelConfig(
            width=32, embedding=16, activation_checkpointing=case.checkpointing,
            backbone=BackboneConfig(name="resnet18", stem="small", image_size=32, strides=(4,), standardise=frozen,
                                    frozen="all" if frozen else "none"),
            abstract=AbstractConfig(time_steps=4, channels=(16,), neuron="plif", tdbn_alpha=3.0),
            text=TextConfig(tokenizer=str(tokenizer), layers=1, width=32, heads=2, max_tokens=10,
                            vocab_size=VOCABULARY, frozen=frozen),
            fusion=FusionConfig(layers=1, heads=2, dropout=0.1, from_text=False, freeze_words=frozen)),
        tasks=tasks, evaluation=EvaluationConfig(batch=3),
        feed=FeedConfig(window=2, image_size=32, captions=1 if with_memory else 2, crop_scale=0.6),
        train=TrainConfig(groups_per_atom=1 if case.precision == "fp64" else 2, atoms_per_step=2 if gather else 4,
                          schedule_steps=STEPS,
                          lr=case.lr, clip=1e9 if gather else 0.5,
                          precision="bf16" if case.precision == "bf16" else "fp32"))


class Training:
    """One rank's share of a case."""

    def __init__(self, case: Case, rank: int, folder: Path, start_step: int = 0) -> None:
        self.case, self.rank, self.step = case, rank, start_step
        config = settings(case, folder / "tokenizer.json")
        plan = feed_plan(config, str(folder / "groups"))
        self.job = TrainingJob(config=config, run=folder / case.name, attempt=1, plan=plan, store=folder,
                               store_version=0, groups=GROUPS, schedule_steps=STEPS, stop_step=STEPS, device="cpu")
        self.engine = Engine(build_model(config), config.train, zero_stage=case.zero, world_size=case.world,
                             seed=config.run.seed, device=CPU)
        self.engine.model.train()
        self.batches: Iterator[MicroBatch] = local_batches(plan, start_step, STEPS, rank, case.world)
        self.contrasts: list[dict[str, Tensor]] = []
        self.engine.model.itc.register_forward_pre_hook(self.record_contrast)
        if case.fixed:
            self.batches = iter([next(self.batches) for _ in range(self.engine.rounds)] * STEPS)

    def run(self, stop_step: int) -> dict[str, Tensor]:
        """Train on to `stop_step`; what its last step measured and left behind."""
        for step in range(self.step + 1, stop_step + 1):
            report = run_step(self.engine, self.batches, self.job, step, self.rank, self.case.world)
        self.step = stop_step
        measured = report.means | {"grad_norm": report.grad_norm}
        return {name: torch.tensor([value], dtype=torch.float64) for name, value in measured.items()} | self.state()

    def record_contrast(self, itc: ITC, sides: tuple[Embedded, Embedded]) -> None:
        """Keep what ITC contrasts in one micro-batch."""
        images, texts = sides
        self.contrasts.append({"image": images.embeddings.detach(), "text": texts.embeddings.detach(),
                               "image_class": images.image_class, "caption_class": images.caption_class,
                               "weight": images.weight, "temperature": itc.temperature.detach()})

    def state(self) -> dict[str, Tensor]:
        """Weights, AdamW's moments and buffers, whole whatever the ZeRO stage; all ranks hold the same buffers."""
        state = {}
        if self.case.zero in (1, 2):  # DeepSpeed links the moments after the first parameter group's first step
            self.engine._optimizer._hp_optimizer_states_linked = False
            self.engine._optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.engine.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.case.zero == 3):
                state[f"weight/{name}"] = parameter.detach().clone()
            if parameter.requires_grad:
                for moment in ("exp_avg", "exp_avg_sq"):
                    state[f"{moment}/{name}"] = self.moment(parameter, moment).clone()
        buffers = {f"buffer/{name}": buffer.clone() for name, buffer in self.engine.model.named_buffers()}
        digest = hashlib.sha256(b"".join(buffer.numpy().tobytes() for buffer in buffers.values())).hexdigest()
        digests = [digest] * self.case.world
        dist.all_gather_object(digests, digest)
        assert len(set(digests)) == 1, "the ranks hold different buffers"
        return state | buffers

    def moment(self, parameter: torch.nn.Parameter, name: str) -> Tensor:
        """One of AdamW's moments of a parameter; after the first step exp_avg is its gradient times 1 - beta."""
        if self.case.zero == 0:
            return self.engine._optimizer.state[parameter][name]
        return safe_get_full_optimizer_state(parameter, name)

    def save(self) -> Path:
        """A checkpoint of all ranks."""
        folder = self.job.run / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        write(self.engine.snapshot(folder))
        dist.barrier()
        return folder


def resumed_differences(case: Case, rank: int, folder: Path, checkpoint: Path,
                        expected: dict[str, Tensor]) -> list[str]:
    """What differs in any bit from `expected` when step RESUMED is reached from the checkpoint of step SAVED."""
    training = Training(case, rank, folder, SAVED)
    training.engine.load(checkpoint)
    found = training.run(RESUMED)
    training.engine._engine.destroy()
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


def run_case(case: Case, rank: int, folder: Path) -> dict[str, Any]:
    """Train; what the first and the last step left behind."""
    training = Training(case, rank, folder)
    results: dict[str, Any] = {}
    if case.evaluate:
        held_out = HeldOut(training.job.config, folder / "held_out", ImageTextStore(folder / "held_out").version(), CPU,
                           limit=0)
        results["metrics"] = held_out.validate(training.engine.model, rank, case.world).metrics
    results["first"] = training.run(1)
    if case.resume:
        training.run(SAVED)
        checkpoint = training.save()
        results["last"] = training.run(RESUMED)
        results["resumed"] = resumed_differences(case, rank, folder, checkpoint, results["last"])
    if case.steps > training.step:
        results["last"] = training.run(case.steps)
    if case.export:
        export(training.engine, training.job, case.steps, rank, case.world)
    if case.task == "dictionary":
        results["contrasts"] = training.contrasts
    training.engine._engine.destroy()
    return results


@contextmanager
def double_precision() -> Iterator[None]:
    """Where our code or DeepSpeed's says fp32 it gets float64, whose rounding is too small to flip a spike."""
    with (mock.patch.multiple(torch, float=torch.float64, float32=torch.float64),
          mock.patch.object(Tensor, "float", Tensor.double)):
        torch.set_default_dtype(torch.float64)
        yield
    torch.set_default_dtype(torch.float32)


def plain_case(folder: Path) -> None:
    """The fp64 cases' training in plain PyTorch."""
    config = settings(Case("dictionary", 1, 0, precision="fp64"), folder / "tokenizer.json")
    with double_precision():
        batches = local_batches(feed_plan(config, str(folder / "groups")), 0, STEPS)
        results = train_plainly(config, batches, STEPS)
    torch.save(results, folder / "plain.pt")


def joint_contrast(folder: Path) -> None:
    """ITC of both atoms of a step as one batch in this process, by autograd: what `itc.gather` is held against."""
    config = settings(Case("gather", 1, 0), folder / "tokenizer.json")
    model = build_model(config).train()
    atoms = list(local_batches(feed_plan(config, str(folder / "groups")), 0, 1))
    model.itc.gather = False
    captured: list[tuple[Embedded, Embedded]] = []
    hook = model.itc.register_forward_pre_hook(lambda module, sides: captured.append(sides))
    for atom in atoms:
        model(atom, 0.0, seed_micro_batch(config.run.seed, atom.position))
    hook.remove()
    joint = [Embedded(*(torch.cat([getattr(part[side], name) for part in captured])
                        for name in ("embeddings", "image_class", "caption_class", "weight"))) for side in (0, 1)]
    assert bool((joint[0].weight == 1).all())
    loss = model.itc(*joint)
    loss.backward()
    gradients = {f"gradient/{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.save({"loss": loss.detach().double().reshape(1)} | gradients, folder / "joint.pt")


def connect_rank(rank: int, world: int, port: int) -> None:
    """Join the gloo group of `world` processes on this machine."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    comm_op.load()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))


def run_rank(rank: int, world: int, port: int, folder: Path, cases: list[Case]) -> None:
    """One process of a world."""
    connect_rank(rank, world, port)
    if world == 1:
        joint_contrast(folder)
        plain_case(folder)
    for case in cases:
        began = time.perf_counter()
        with double_precision() if case.precision == "fp64" else nullcontext():
            results = run_case(case, rank, folder)
        if rank == 0:
            torch.save(results, folder / f"{case.name}.pt")
            print(f"{case.name}: {time.perf_counter() - began:.1f} s", flush=True)
    dist.destroy_process_group()


def cut_small_weights_too(*arguments: object) -> dict[str, object]:
    """The engine's DeepSpeed configuration, but on two ranks ZeRO-3 spares no weight of these small models."""
    config = deepspeed_config(*arguments)
    if dist.get_world_size() == 2:
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    return config


def write_data(folder: Path) -> None:
    """A tokenizer, a few held-out scenes, and groups of blurred colours (training on noise is chaotic)."""
    rows, random = make_groups(GROUPS, GROUP_SIZE, 32), np.random.default_rng(1)
    scenes = scene_rows(train=0, val=7)
    make_store(folder / "held_out", [scene | {"captions": row["captions"][0]}
                                     for scene, row in zip(scenes, rows, strict=False)])
    write_tokenizer(folder / "tokenizer.json")
    (folder / "groups").mkdir()
    for row in rows:
        row["images"] = [encode(cv2.resize(random.integers(0, 256, (3, 3, 3), np.uint8), (32, 32)), "png")
                         for _ in row["images"]]
    write_groups(folder / "groups", rows)


def run_world(target: Callable[..., None], arguments: list[tuple[object, ...]]) -> None:
    """Run `target` in forked processes, one for each tuple of arguments; end everything where one fails."""
    processes = [multiprocessing.get_context("fork").Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(f"{target.__name__}: exit codes {[process.exitcode for process in processes]}")


def main(folder: Path, wanted: list[str]) -> None:
    """Write the data, run every world."""
    engines.deepspeed_config = cut_small_weights_too
    logger.setLevel("ERROR")
    run_world(write_data, [(folder,)])  # a process of its own, since Delta's threads do not survive a fork
    for world in (1, 2, 3):
        cases = [case for case in CASES if case.world == world and (not wanted or case.name in wanted)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if cases:
            run_world(run_rank, [(rank, world, port, folder, cases) for rank in range(world)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
