"""Masked vision modelling: predicts the spike code of masked blocks of visual tokens."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ashnets.config import MVMConfig
from ashnets.model import VisualFeatures
from ashnets.tasks.contrast import weighted_mean

INITIAL_BIAS = -2.5  # the logit of a firing rate of 7.6 %


def block_mask(samples: int, grid: tuple[int, int], rate: float, cap: float,
               generator: torch.Generator) -> Bool[Tensor, "B N"]:
    """Visual tokens to mask: for each sample the union of random, distinct 2x2 blocks of the h x w grid.

    There are about `rate` * N / 4 blocks, at least one; never more than `cap` * N tokens, except that a mask is
    never empty. Where the cap has no room for a 2x2 block (or the grid has none), blocks are single tokens.
    """
    height, width = grid
    room = int(cap * height * width)
    side = 2 if room >= 4 and min(grid) >= 2 else 1
    blocks = max(1, min(round(rate * height * width / side**2), room // side**2))
    rows, columns = height - side + 1, width - side + 1
    first = torch.rand(samples, rows * columns, generator=generator).argsort(1)[:, :blocks]
    corner = first // columns * width + first % columns
    inside = torch.tensor([y * width + x for y in range(side) for x in range(side)])
    tokens = (corner[:, :, None] + inside).flatten(1)
    return torch.zeros(samples, height * width, dtype=torch.bool).scatter_(1, tokens, True)


def prediction_head(width: int, outputs: int, bias: float = 0.0) -> nn.Sequential:
    """BERT's transform and a linear layer whose bias starts at `bias`."""
    last = nn.Linear(width, outputs)
    nn.init.constant_(last.bias, bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), last)


class SpikeMVM(nn.Module):
    """The target is the abstract encoder's firing rate of each unit (stop-gradient): multi-label cross-entropy."""

    def __init__(self, width: int, config: MVMConfig) -> None:
        super().__init__()
        self.config = config
        self.head = prediction_head(width, width, INITIAL_BIAS)

    def targets(self, visual: VisualFeatures) -> Float[Tensor, "B N D"]:
        """Firing rates, cut from the graph."""
        assert visual.rate is not None, "the abstract encoder is off: the target is the dictionary"
        return visual.rate.detach().float()

    def mask(self, targets: Float[Tensor, "B N D"], grid: tuple[int, int],
             generator: torch.Generator) -> Bool[Tensor, "B N"]:
        """2x2 blocks (see `block_mask`)."""
        drawn = block_mask(len(targets), grid, self.config.mask_rate, self.config.max_rate, generator)
        return drawn.to(targets.device)

    def token_losses(self, states: Float[Tensor, "P D"], targets: Float[Tensor, "P D"]) -> Float[Tensor, "P"]:
        """Binary cross-entropy, mean over units, of masked tokens."""
        logits = self.head(states).float()
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)

    def forward(self, states: Float[Tensor, "F N D"], targets: Float[Tensor, "F N D"], mask: Bool[Tensor, "F N"],
                weight: Float[Tensor, "F"]) -> Float[Tensor, ""]:
        """Mean of `token_losses` over masked tokens of fused visual states."""
        return weighted_mean(self.token_losses(states[mask], targets[mask]), weight[:, None].expand_as(mask)[mask])

    def frequencies(self, targets: Float[Tensor, "P D"]) -> Float[Tensor, "D"]:
        """Sum of the targets over tokens: what the best constant prediction is made of."""
        return targets.double().sum(0)

    @staticmethod
    def reference(frequencies: Float[Tensor, "D"], tokens: float) -> float:
        """Loss of predicting every unit's mean rate over `tokens` tokens: the mean binary entropy of the rates."""
        rates = frequencies.double() / tokens
        return float((torch.special.entr(rates) + torch.special.entr(1 - rates)).mean())


def explained(loss: float, reference: float) -> float:
    """Share of the best constant prediction's loss that the model explains: 1 - loss / reference.

    Raw losses mislead, since they rise while the spike code gets richer. The constants are fitted to the very data
    that is scored, so that only use of the input scores above 0. NaN where constants are already perfect. Rates
    between 0 and 1 cost something even when predicted perfectly: there 1 is out of reach.
    """
    return 1 - loss / reference if reference > 0 else math.nan
