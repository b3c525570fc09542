"""DeepSpeed's shards in the form that any number of workers and any ZeRO stage loads: a folder of files a parameter.

DeepSpeed converts stages 1 to 3 itself; stage 0 keeps a plain torch optimizer, which is written in the same form here.
Its three stages write three dialects, though, and read back only their own: all are brought into one here.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint import PARAM, ds_to_universal
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

TENSORS = ("fp32", "exp_avg", "exp_avg_sq")
"""A parameter's weight and AdamW's two moments."""


def load(path: Path) -> Any:
    """A file of a checkpoint whose manifest has been verified, in host memory; it may hold tensors and DeepSpeed's own
    plain records."""
    with torch.serialization.safe_globals([fragment_address, LossScaler, ZeroStageEnum]):
        return torch.load(path, map_location="cpu", weights_only=True)


def model_file(state: Path) -> Path:
    """The file that holds the model's buffers and DeepSpeed's counters (stage 3 writes one a rank, all alike)."""
    return next(path for path in (state / "mp_rank_00_model_states.pt",
                                  state / "zero_pp_rank_0_mp_rank_00_model_states.pt") if path.exists())


def convert(state: Path, to: Path, names: list[str]) -> None:
    """Write the shards of the verified folder `state` into the new folder `to`, in the universal form.

    `names` are the parameters that learn, in the order of the optimizer's groups.
    """
    to.mkdir(parents=True)
    if any(state.glob("*_optim_states.pt")):
        arguments = argparse.Namespace(input_folder=str(state), output_folder=str(to), num_extract_workers=1,
                                       num_merge_workers=1, keep_temp_folder=False, strict=True,
                                       inject_missing_state=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(arguments)
    else:
        _convert_stage_0(state, to, names)
    _unify(to, names, _optimizer_step(state))
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        if not (to / name).exists():
            shutil.copy(model_file(state), to / name)


def _convert_stage_0(state: Path, to: Path, names: list[str]) -> None:
    model = load(model_file(state))
    moments = model["optimizer"]["state"]
    assert len(moments) == len(names), "the optimizer knows other parameters than the model"
    for index, name in enumerate(names):
        folder = to / "zero" / name
        folder.mkdir(parents=True)
        torch.save(model["module"][name], folder / "fp32.pt")
        for key in TENSORS[1:]:
            torch.save(moments[index][key], folder / f"{key}.pt")


def _optimizer_step(state: Path) -> Tensor:
    """AdamW's count of steps, the same for all parameters."""
    shards = sorted(state.glob("*_optim_states.pt"))
    if not shards:
        return load(model_file(state))["optimizer"]["state"][0]["step"]
    optimizer = load(shards[0])["optimizer_state_dict"]
    inner = optimizer.get("base_optimizer_state") or optimizer["optimizer_state_dict"]
    return inner["state"][0]["step"]


def _unify(to: Path, names: list[str], step: Tensor) -> None:
    """Give every parameter the files that each stage looks for.

    The settings of the optimizer's groups are left out: they follow from the configuration, and stage 3 would give all
    groups those of the first.
    """
    for name in names:
        folder = to / "zero" / name
        for key in TENSORS:
            value = load(folder / f"{key}.pt")
            torch.save({PARAM: value[PARAM] if isinstance(value, dict) else value}, folder / f"{key}.pt")
        torch.save(step, folder / "step.pt")
    groups: list[dict[str, Any]] = [{} for _ in names]  # as many as there can be
    torch.save({"ds_version": deepspeed.__version__, "param_groups": groups,
                "optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": groups}},
               to / "zero" / "optimizer_state.pt")


def parameter_state(state: Path, name: str) -> dict[str, Tensor]:
    """A parameter's weight (`fp32`), moments and `step` out of a converted folder."""
    folder = state / "zero" / name
    return {key: load(folder / f"{key}.pt")[PARAM] for key in TENSORS} | {"step": load(folder / "step.pt")}
