"""Move BatchNorm running statistics once an optimizer step, towards the mean over the step's real micro-batches.

torch moves them at every forward, so accumulation and world size would change them. Here a layer's momentum is 1
while training, so that after a forward its buffers hold that micro-batch's statistics alone (a recomputed forward
sets the same values again); the mean over all ranks' real micro-batches then moves the running values.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Reduce = Callable[[Tensor], Tensor]


class StepStatistics:
    """Running statistics of every BatchNorm of `model` that tracks them and is in training mode.

    `momentum` is the share by which one optimizer step moves a running value. `reduce` sums a tensor over all
    ranks (identity for one process).
    """

    def __init__(self, model: nn.Module, momentum: float = 0.1, reduce: Reduce = lambda total: total) -> None:
        self._layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._momentum = momentum
        self._reduce = reduce
        self._running: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._real = 0
        for layer in self._layers:
            layer.momentum = 1.0

    def _buffers(self) -> list[Tensor]:
        buffers: list[Tensor] = []
        for layer in self._layers:
            assert layer.running_mean is not None and layer.running_var is not None
            buffers += [layer.running_mean, layer.running_var]
        return buffers

    def _counters(self) -> list[Tensor]:
        return [layer.num_batches_tracked for layer in self._layers if layer.num_batches_tracked is not None]

    def begin_step(self) -> None:
        """Remember the running values before the step's first forward."""
        self._running = [b.clone() for b in self._buffers()]
        self._counts = [counter.clone() for counter in self._counters()]
        self._sums = [torch.zeros_like(b) for b in self._running]
        self._real = 0

    def add_micro_batch(self, real: bool) -> None:
        """Take the statistics of the forward that has just run; a padding micro-batch counts nothing."""
        if real:
            self._real += 1
            for total, buffer in zip(self._sums, self._buffers(), strict=True):
                total += buffer

    @torch.no_grad()
    def cancel_step(self) -> None:
        """Set every buffer to what it was before the step's first forward."""
        for buffer, before in zip(self._buffers() + self._counters(), self._running + self._counts, strict=True):
            buffer.copy_(before)

    @torch.no_grad()
    def end_step(self) -> None:
        """Set every buffer to (1 - momentum) * running + momentum * mean over all ranks' real micro-batches.

        `num_batches_tracked` counts steps, since the forwards of a rank depend on the number of ranks.
        """
        if not self._layers:
            return
        device = self._sums[0].device
        flat = torch.cat([s.flatten() for s in self._sums] + [torch.tensor([float(self._real)], device=device)])
        flat = self._reduce(flat)
        mean, offset = flat[:-1] / flat[-1].clamp(min=1), 0
        training = [layer.training for layer in self._layers for _ in range(2)]
        for buffer, running, moves in zip(self._buffers(), self._running, training, strict=True):
            target = mean[offset:offset + buffer.numel()].view_as(buffer)
            offset += buffer.numel()
            buffer.copy_(torch.lerp(running, target.to(running.dtype), self._momentum) if moves else running)
        for counter, count, layer in zip(self._counters(), self._counts, self._layers, strict=True):
            counter.copy_(count + int(layer.training))


@torch.no_grad()
def recalibrate(model: nn.Module, forwards: Sequence[Callable[[], object]], real: Sequence[bool] | None = None,
                reduce: Reduce = lambda total: total) -> None:
    """Replace all running statistics by plain means over `forwards`, each one a call of the model from rest.

    Short runs leave running statistics behind the weights; a model that is exported or scored gets this first.
    Layers in evaluation mode (frozen ones) keep theirs. Forwards that are not `real` (padding, which keeps the ranks
    in step) count nothing.
    """
    if not forwards:
        raise ValueError("recalibration needs at least one micro-batch")
    statistics = StepStatistics(model, momentum=1.0, reduce=reduce)
    statistics.begin_step()
    for forward, counts in zip(forwards, real or [True] * len(forwards), strict=True):
        forward()
        statistics.add_micro_batch(counts)
    statistics.end_step()
