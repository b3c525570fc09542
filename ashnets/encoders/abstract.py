"""Semantic abstract encoder: a spiking network over the feature map; its output is a firing rate."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from jaxtyping import Bool, Float
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.layer import ThresholdDependentBatchNorm2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ashnets.config import AbstractConfig
from ashnets.encoders.spiking import SpikingLayer


class SpikingBlock(nn.Module):
    """Spiking residual block: conv, tdBN, neurons, conv, tdBN; plus a tdBN shortcut; neurons behind the sum.

    tdBN (arXiv 2011.05280) scales to alpha * v_threshold, and to 1/sqrt(2) of that in each branch of the sum.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, config: AbstractConfig) -> None:
        super().__init__()
        alpha, threshold = config.tdbn_alpha, config.v_threshold
        self.conv1 = nn.Conv2d(inputs, hidden, kernel_size=3, padding=1, bias=False)
        self.norm1 = ThresholdDependentBatchNorm2d(alpha, threshold, hidden)
        self.neurons1 = SpikingLayer(config)
        self.conv2 = nn.Conv2d(hidden, outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = ThresholdDependentBatchNorm2d(alpha / 2**0.5, threshold, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
        self.shortcut_norm = ThresholdDependentBatchNorm2d(alpha / 2**0.5, threshold, outputs)
        self.neurons2 = SpikingLayer(config)

    def forward(self, x: Float[Tensor, "T B C h w"], time_steps: int, group_size: int,
                restart: Bool[Tensor, " B"] | None) -> Float[Tensor, "T B D h w"]:
        """Spikes over `time_steps`; an input of one time step is constant, and what depends on it alone runs once."""
        charge = self.norm1(functional.seq_to_ann_forward(x, self.conv1))
        shortcut = self.shortcut_norm(functional.seq_to_ann_forward(x, self.shortcut))
        spikes = self.neurons1(charge.expand(time_steps, -1, -1, -1, -1), group_size, restart)
        residual = self.norm2(functional.seq_to_ann_forward(spikes, self.conv2))
        return self.neurons2(residual + shortcut, group_size, restart)


class AbstractEncoder(nn.Module):
    """Spiking residual blocks; the code of a token is the firing rate of its D units over T time steps."""

    def __init__(self, channels: int, width: int, config: AbstractConfig, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        inputs = [channels] + [width] * (len(config.channels) - 1)
        self.blocks = nn.ModuleList(SpikingBlock(c, hidden, width, config)
                                    for c, hidden in zip(inputs, config.channels, strict=True))

    def forward(self, features: Float[Tensor, "B C h w"], group_size: int = 1,
                restart: Bool[Tensor, " B"] | None = None) -> Float[Tensor, "B N D"]:
        """Firing rates from 0 to 1, tokens in row-major order; B is a multiple of `group_size`.

        `restart` marks samples that start from rest although their group carries. Raises ValueError where
        `window: shared` cannot split its steps over the group.
        """
        time_steps = self.config.steps_per_sample(group_size)
        x = features.unsqueeze(0)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, time_steps, group_size, restart, use_reentrant=False,
                               context_fn=partial(_forward_and_recompute, block))
            else:
                x = block(x, time_steps, group_size, restart)
        return x.mean(dim=0).flatten(2).transpose(1, 2)


def _forward_and_recompute(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of activation checkpointing: running statistics move in the forward, not again in the recomputation."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, ThresholdDependentBatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
