"""What masked vision modelling has learned: the share of a loss explained beyond the best constant prediction.

Raw losses mislead: they rise while the target gets richer. Constants are fitted to the very data that is scored, so
that a model scores above 0 only by using its input. Rates between 0 and 1 keep a loss above 0 even when predicted
perfectly, so that 1 is out of reach there.
"""
from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def explained_share(loss: float, constant_loss: float) -> float:
    """1 - loss / constant_loss; NaN where constants are already perfect."""
    return 1 - loss / constant_loss if constant_loss > 0 else math.nan


def mean_rate_loss(rates: Float[Tensor, "D"]) -> float:
    """Binary cross-entropy (mean over units) of predicting every unit's mean firing rate: their mean entropy."""
    rates = rates.double()
    return float((torch.special.entr(rates) + torch.special.entr(1 - rates)).mean())


def entry_share_loss(shares: Float[Tensor, "S"]) -> float:
    """Cross-entropy of predicting every dictionary entry by its share (which sum to 1): their entropy."""
    return float(torch.special.entr(shares.double()).sum())
