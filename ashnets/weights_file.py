"""A model's weights as one safetensors file: every tensor once, tied ones under their first name, checked on load."""
from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name in the state dict -> the first name of the same tensor (tied weights have several)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in model.state_dict(keep_vars=True).items()}


def save_weights(model: nn.Module, path: Path, step: int | None = None) -> None:
    """Write parameters and buffers of `model`; the file appears whole or not at all.

    `step`, the optimizer steps that they had, goes into the file's metadata (`trained_steps`).
    """
    state: dict[str, Tensor] = model.state_dict()
    unique = {name: state[name].detach().cpu().clone().contiguous()
              for name, first in first_names(model).items() if name == first}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    try:
        save_file(unique, temporary, {"format": "pt"} | ({} if step is None else {"step": str(step)}))
        temporary.chmod(0o644)  # safetensors keeps its files to their owner
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def trained_steps(path: Path) -> int | None:
    """The optimizer steps that the weights in `path` had; None where the file does not say."""
    with safe_open(path, "pt") as file:
        step = (file.metadata() or {}).get("step")
    return None if step is None else int(step)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote. Raises ValueError naming what is missing, left over or of another shape."""
    found = load_file(path)
    names = first_names(model)
    wanted = {name for name, first in names.items() if name == first}
    state = model.state_dict()
    reshaped = sorted(name for name in wanted & found.keys() if found[name].shape != state[name].shape)
    problems = [f"{what}: {', '.join(list_[:5])}{' ...' if len(list_) > 5 else ''}" for what, list_ in (
        ("missing", sorted(wanted - found.keys())), ("not in this model", sorted(found.keys() - wanted)),
        ("of another shape", reshaped)) if list_]
    if problems:
        raise ValueError(f"{path} holds the weights of another architecture ({'; '.join(problems)})")
    with torch.no_grad():
        model.load_state_dict({name: found[first] for name, first in names.items()})
