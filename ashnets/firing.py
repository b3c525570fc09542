"""Firing of the spiking layers: mean rates, and the shares of dead and saturated units."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from spikingjelly.activation_based.monitor import OutputMonitor
from torch import Tensor, nn

from ashnets.encoders.spiking import SpikingLayer


@dataclass(frozen=True)
class Firing:
    """One layer over all samples seen: spikes a time step and unit; shares of units (channels) from 0 to 1.

    A dead unit never fired, a saturated one fired at every place and time step.
    """

    rate: float
    dead: float
    saturated: float


class FiringRecord:
    """What `watch_firing` has seen so far."""

    def __init__(self, monitor: OutputMonitor) -> None:
        self._monitor = monitor

    def summary(self) -> dict[str, Firing]:
        """Figures of every spiking layer that ran, by its name; ValueError where none ran."""
        names = self._monitor.monitored_layers
        seen = {name: torch.stack(self._monitor[name]) for name in names if self._monitor[name]}
        if not seen:
            raise ValueError("no spiking layer ran while firing was watched")
        return {name: Firing(rate=rates.mean().item(),
                             dead=(rates == 0).all(dim=0).float().mean().item(),
                             saturated=(rates == 1).all(dim=0).float().mean().item())
                for name, rates in seen.items()}


def firing_rates(model: nn.Module) -> dict[str, Tensor]:
    """Mean firing rate (0-dimensional, detached) of every spiking layer's last forward, by the layer's name."""
    return {name: layer.rate.mean() for name, layer in model.named_modules()
            if isinstance(layer, SpikingLayer) and layer.rate is not None}


@contextmanager
def watch_firing(model: nn.Module) -> Iterator[FiringRecord]:
    """Record every spiking layer of `model` inside the block (SpikingJelly's OutputMonitor on unit rates)."""
    with OutputMonitor(model, SpikingLayer, lambda spikes: spikes.detach().mean(dim=(0, 1, 3, 4))) as monitor:
        yield FiringRecord(monitor)
