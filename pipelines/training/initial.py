"""`init=`: start a run's weights from another model's. They are copied into the run, and every worker loads the copy.

Checkpoints leave frozen weights out, so a resumed run needs its start again, whatever became of the other model.
"""
from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ashnets.tasks.pretraining import PretrainingModel
from ashnets.weights_file import first_names
from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import sync
from pipelines.model_source import WEIGHTS, find_model
from pipelines.training.model import build_model

OF_A_RUN = ("itc.memory_",)
"""Buffers that belong to another run's stream of samples."""
SHOWN = 6


@dataclass(frozen=True)
class InitialWeights:
    """Names of tensors: what was loaded, and why the others were not."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """The model has them, the file does not: they keep the start that the configuration gives."""
    reshaped: tuple[str, ...]
    """Of another shape in the file: they keep that start too."""
    left_out: tuple[str, ...]
    """The file has them, the model does not, or they belong to the other run alone."""

    def lines(self) -> list[str]:
        """The report, a line a kind."""
        total = len(self.loaded) + len(self.missing) + len(self.reshaped)
        kinds = {"missing there, started as configured": self.missing,
                 "of another shape, started as configured": self.reshaped, "not taken over": self.left_out}
        return [f"{len(self.loaded)} of {total} tensors loaded",
                *(f"  {len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
                  for kind, names in kinds.items() if names)]


def initial_model(config: PretrainConfig, run: Path) -> PretrainingModel:
    """`build_model`, and over it the weights that `init` names, from the run's copy."""
    model = build_model(config)
    if config.init:
        load_initial(model, initial_copy(run))
    return model


def load_initial(model: nn.Module, path: Path) -> InitialWeights:
    """Copy into `model` every tensor of the safetensors file that it has in the same shape.

    Raises ValueError where the file is no safetensors file, or none of its tensors fits.
    """
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"init: {path} is no safetensors file ({error}): name a run or an export that is whole"
                         ) from error
    state = model.state_dict()
    names = {name for name, first in first_names(model).items() if name == first and not name.startswith(OF_A_RUN)}
    same = {name for name in names & found.keys() if found[name].shape == state[name].shape}
    if not same:
        raise ValueError(f"init: no tensor of {path} fits this model: its configuration is another architecture's")
    with torch.no_grad():
        for name in same:
            state[name].copy_(found[name])
    return InitialWeights(loaded=tuple(sorted(same)), missing=tuple(sorted(names - found.keys())),
                          reshaped=tuple(sorted(names & found.keys() - same)),
                          left_out=tuple(sorted(found.keys() - names)))


def check_initial(config: PretrainConfig, run: Path, root: Path) -> None:
    """At a run's first launch, say what `init` gives; UserError where it does not fit or is not there.

    Raises UserError as well where a run with checkpoints has lost its copy.
    """
    if not config.init:
        return
    if _has_checkpoints(run):
        if not initial_copy(run).exists():
            raise UserError(f"init={config.init}: {initial_copy(run)} is gone, which this run started from: put it "
                            "back, or choose another run.name")
        return
    source = find_model("init", config.init, root).weights
    try:
        report = load_initial(build_model(config), source)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"init: {source}: " + "\n".join(report.lines()), flush=True)


def pin_initial(config: PretrainConfig, run: Path, root: Path) -> None:
    """Copy the weights that `init` names into the run, as long as it has no checkpoint; hold the run's lease."""
    copy = initial_copy(run)
    if not config.init or _has_checkpoints(run):
        return
    copy.parent.mkdir(exist_ok=True)
    temporary = copy.with_name(f".{copy.name}")
    shutil.copyfile(find_model("init", config.init, root).weights, temporary)
    sync(temporary)
    os.replace(temporary, copy)
    sync(copy.parent)


def initial_copy(run: Path) -> Path:
    """The run's own copy of the weights that it started from."""
    return run / "init" / WEIGHTS


def _has_checkpoints(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*"))
