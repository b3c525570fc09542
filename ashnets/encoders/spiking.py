"""Spiking neuron layer that carries the membrane potential from sample to sample inside a group."""
from __future__ import annotations

import math
import os

import torch
from jaxtyping import Bool, Float
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor, nn

from ashnets.config import AbstractConfig, Carry

SURROGATES = {"atan": surrogate.ATan, "sigmoid": surrogate.Sigmoid, "triangle": surrogate.PiecewiseQuadratic}
# SpikingJelly 2 has native CUDA kernels where version 1 had CuPy ones.
KERNELS = {"torch": "torch", "triton": "triton", "cupy": "cuda"}


class SpikingLayer(nn.Module):
    """LIF, parametric LIF or IF neurons over SpikingJelly's multi-step kernels: hard reset to 0, reset detached.

    The state is a local variable of `forward`: it never outlives one call, so nobody resets anything, and
    recomputing under activation checkpointing cannot charge a membrane twice. `rate` is the mean spike count a
    time step of the last forward, by channel ([C], detached).
    """

    rate: Float[Tensor, " C"] | None = None

    def __init__(self, config: AbstractConfig) -> None:
        super().__init__()
        self.neuron = config.neuron
        self.carry: Carry = config.carry
        self.tau = float(config.tau)
        self.v_threshold = float(config.v_threshold)
        self.surrogate = SURROGATES[config.surrogate](alpha=float(config.surrogate_alpha))
        if config.kernel != "auto":
            os.environ[f"SJ_{config.neuron.upper()}_CUDA_IMPLEMENTATION"] = KERNELS[config.kernel]
        if config.neuron == "plif":
            self.reciprocal_tau = nn.Parameter(torch.full((1,), -math.log(self.tau - 1.0)))  # before the sigmoid

    def forward(self, current: Float[Tensor, "T B C h w"], group_size: int = 1,
                restart: Bool[Tensor, " B"] | None = None) -> Float[Tensor, "T B C h w"]:
        """Spikes (0 or 1, fp32) for the input currents; sample i of group g stands at row g * group_size + i.

        Each sample runs T steps. Its membrane potential starts from rest (`carry: reset`, the first of its group,
        or `restart`), else from where the sample before it ended: without (`detach`) or with (`bptt`) gradient.
        """
        current = current.float()  # the membrane integrates small differences: never in bfloat16
        if self.carry == "reset" or group_size == 1:
            spikes, _ = self._scan(current, torch.zeros_like(current[0]))
        else:
            spikes = self._scan_groups(current, group_size, restart)
        self.rate = spikes.detach().mean(dim=(0, 1, 3, 4))
        return spikes

    def _scan_groups(self, current: Float[Tensor, "T B C h w"], group_size: int,
                     restart: Bool[Tensor, " B"] | None) -> Float[Tensor, "T B C h w"]:
        segments = current.unflatten(1, (-1, group_size)).unbind(2)  # G of [T, groups, C, h, w]
        starts = None if restart is None else restart.view(-1, group_size, 1, 1, 1).unbind(1)
        v = torch.zeros_like(segments[0][0])
        spikes = []
        for i, segment in enumerate(segments):
            if self.carry == "detach":
                v = v.detach()
            if starts is not None:
                v = v.masked_fill(starts[i], 0.0)
            fired, v = self._scan(segment, v)
            spikes.append(fired)
        return torch.stack(spikes, dim=2).flatten(1, 2)

    def _scan(self, current: Float[Tensor, "T N C h w"],
              v: Float[Tensor, "N C h w"]) -> tuple[Float[Tensor, "T N C h w"], Float[Tensor, "N C h w"]]:
        """SpikingJelly's multi-step neuron from membrane potential `v`: spikes and the potential at the end."""
        common = {"v_threshold": self.v_threshold, "v_reset": 0.0, "surrogate_function": self.surrogate,
                  "detach_reset": True}
        if self.neuron == "lif":
            spikes, v, _ = functional.lif_multi_step(current, v, tau=self.tau, decay_input=True, **common)
        elif self.neuron == "plif":
            w = self.reciprocal_tau[0]
            spikes, v, _ = functional.plif_multi_step(current, v, w, decay_input=True, **common)
        else:
            spikes, v, _ = functional.if_multi_step(current, v, **common)
        return spikes, v

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return f"neuron={self.neuron}, carry={self.carry}, tau={self.tau}, v_threshold={self.v_threshold}"
