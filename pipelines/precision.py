"""bfloat16 or float32: `train.precision=auto` takes what the devices of a run compute fast, once for the whole run."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.config import PretrainConfig
from pipelines.resume import load_config

if TYPE_CHECKING:
    import torch

FAST_IN_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Abilities of a CPU (x86, x86, Arm) without which PyTorch computes convolutions in bfloat16 by a slow loop."""


def fast_dtype(device: str) -> torch.dtype:
    """What this process's CPU or GPU (`cpu`, `cuda`) multiplies fastest without losing the range of fp32."""
    import torch  # late: seconds, and a command checks its settings before

    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16."""
    import torch

    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name, False) for name in FAST_IN_BF16)


def recorded(config: PretrainConfig, run: Path) -> PretrainConfig:
    """`config`, but with the precision that the run in folder `run` began with where it says `auto`."""
    if config.train.precision != "auto" or not (run / "config.yaml").exists():
        return config
    return _with(config, load_config(run).train.precision)


def settled(config: PretrainConfig, device: Literal["cpu", "cuda"]) -> PretrainConfig:
    """`config` with `auto` replaced: bf16 on GPUs, and on CPUs where the driver's has instructions for it."""
    if config.train.precision != "auto":
        return config
    return _with(config, "bf16" if device == "cuda" or cpu_has_bf16() else "fp32")


def _with(config: PretrainConfig, precision: Literal["auto", "fp32", "bf16"]) -> PretrainConfig:
    return replace(config, train=replace(config.train, precision=precision))
