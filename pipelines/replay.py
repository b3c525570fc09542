"""One step of a run again, in one process: every micro-batch by itself, and where its numbers stop being finite."""
from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ashnets.batch import MicroBatch
from cluster import comm_op
from pipelines.errors import UserError
from pipelines.feed.batches import local_batches
from pipelines.grouping.materialise import GroupedStore
from pipelines.location import folder_of, place_of
from pipelines.pretraining import make_job
from pipelines.replay_config import ReplayConfig
from pipelines.resume import load_config
from pipelines.training import checkpoint
from pipelines.training.data_pin import read_pin
from pipelines.training.engine import Engine
from pipelines.training.initial import initial_model
from pipelines.training.job import TrainingJob
from pipelines.training.step import losses_of, run_step
from pipelines.training.universal import convert


@dataclass(frozen=True)
class Atom:
    """What one micro-batch of the step did."""

    batch: MicroBatch
    losses: dict[str, float]
    gradient_norm: float
    """Of this micro-batch alone, before clipping."""
    first_output: str
    """The first module of the forward pass whose output is not finite; empty: all are."""
    gradients: tuple[str, ...]
    """Parameters whose gradient is not finite, in the order in which the backward pass came to them."""

    @property
    def finite(self) -> bool:
        """Whether every loss and gradient is."""
        return not self.first_output and not self.gradients and all(map(_is_finite, self.losses.values()))


@dataclass(frozen=True)
class Replayed:
    """A step that has been run again."""

    start: str
    """The checkpoint that it was reached from; empty: the initial weights."""
    again: int
    """Steps between that were run again."""
    spoilt: tuple[str, ...]
    """Weights and buffers that were not finite before the step."""
    atoms: tuple[Atom, ...]

    @property
    def finite(self) -> bool:
        """Whether all is."""
        return not self.spoilt and all(atom.finite for atom in self.atoms)


def replay(config: ReplayConfig, root: Path) -> Replayed:
    """Run the step that `config` names again; UserError where there is no such run or step."""
    job = _job(find_run(config.run, root))
    if not 1 <= config.step <= job.schedule_steps:
        raise UserError(f"step={config.step}: run {job.run.name} has the steps 1 to {job.schedule_steps}")
    with _alone():
        return _replay(job, config.step)


def find_run(location: str, root: Path) -> Path:
    """The run's folder: a path, or a name below `root`/runs; UserError where it is none."""
    if not location:
        raise UserError("run is missing: name a run's folder, or a run below the default storage, run=RUN")
    for path in (folder_of("run", location, "runs"), root / "runs" / location):
        if (path / "config.yaml").is_file() and (path / "data.json").is_file():
            return path.absolute()
    raise UserError(f"run={location}: no run with config.yaml and data.json lies there or in {root / 'runs'}")


def _job(run: Path) -> TrainingJob:
    """The run's job for one worker without ZeRO, which computes the same."""
    config, pin = load_config(run), read_pin(run)
    config = replace(config, scaling=replace(config.scaling, workers=1, zero_stage=0))
    groups = GroupedStore.open(pin.groups).manifest["groups"]
    return make_job(config, run, 0, place_of(pin.store), pin.version, Path(pin.groups), groups, "cpu")


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    comm_op.load()
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _replay(job: TrainingJob, step: int) -> Replayed:
    train = job.config.train
    engine = Engine(initial_model(job.config, job.run), train, zero_stage=0, world_size=1,
                    seed=job.config.run.seed, device=torch.device("cpu"))
    found = next((pair for pair in checkpoint.whole(job.run) if pair[1].step < step), None)
    begin = found[1].step if found else 0
    if found:
        _load(engine, found[0], found[1])
    engine.model.train()
    batches = local_batches(job.plan, begin, step)
    for before in range(begin + 1, step):
        run_step(engine, batches, job, before, 0, 1)
    spoilt = tuple(name for name, tensor in engine.model.state_dict().items() if not _all_finite(tensor))
    engine.atoms = job.plan.real_atoms(step - 1)
    engine.statistics.begin_step()
    progress = (step - 1) / job.schedule_steps
    atoms = tuple(_atom(engine, next(batches), progress) for _ in range(engine.atoms))
    return Replayed(found[0].name if found else "", step - 1 - begin, spoilt, atoms)


def _load(engine: Engine, folder: Path, manifest: checkpoint.Manifest) -> None:
    """Load a checkpoint that has been verified, whatever wrote it; the run's folder stays as it is."""
    if engine.reads(manifest.world_size, manifest.zero_stage):
        engine.load(folder)
        return
    with tempfile.TemporaryDirectory() as converted:
        convert(folder / "state", Path(converted) / "state", engine.trainable_names())
        engine.load_universal(Path(converted))


def _atom(engine: Engine, batch: MicroBatch, progress: float) -> Atom:
    """Run one micro-batch and take its gradients away again."""
    with Watch(engine.model) as watch:
        output = engine.forward_backward(batch, real=True, progress=progress)
    gradients = [p.grad for p in engine.model.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients)) * engine.atoms  # of the step's mean it is that share
    for parameter in engine.model.parameters():
        parameter.grad = None
    return Atom(batch, losses_of(output), norm, watch.first_output, tuple(watch.gradients))


@dataclass
class Watch:
    """Notes where a forward and a backward pass stop being finite, while the `with` block lasts."""

    model: nn.Module
    first_output: str = ""
    gradients: list[str] = field(default_factory=list)

    def __enter__(self) -> Watch:
        self._hooks = [module.register_forward_hook(self._output(name or "the model"))
                       for name, module in self.model.named_modules()]
        self._hooks += [parameter.register_hook(self._gradient(name))
                        for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _output(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if not self.first_output and not all(map(_all_finite, _tensors(output))):
                self.first_output = name
        return look

    def _gradient(self, name: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if not _all_finite(gradient):
                self.gradients.append(name)
        return look


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _all_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
