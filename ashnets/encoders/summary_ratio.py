"""Summary ratio: how abstract semantics are redistributed over the visual tokens, V = concrete + SR * abstract."""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.config import SummaryRatioConfig


class SummaryRatio(nn.Module):
    """The ratio in its four forms; `learned` follows the sequel's V' = r * E_SNN + F (arXiv 2501.19069).

    `gate` is SOHO's: a 1x1 convolution over both tokens, softmaxed into two shares a token. Its shape is that of
    SOHO's neck, its place here an assumption.
    """

    def __init__(self, config: SummaryRatioConfig, width: int) -> None:
        super().__init__()
        self.mode = config.mode
        if config.mode == "gate":
            self.gate = nn.Linear(2 * width, 2)
        elif config.mode == "fixed":
            self.fixed = config.value
        else:
            # never 0-dimensional: DeepSpeed's broadcast cannot take such a parameter
            self.ratio = nn.Parameter(torch.full((width if config.mode == "per_channel" else 1,), config.value))

    def forward(self, concrete: Float[Tensor, "B N D"], abstract: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Visual tokens V."""
        if self.mode == "gate":
            shares = self.gate(torch.cat([abstract, concrete], dim=-1)).float().softmax(dim=-1)
            return shares[..., :1] * abstract + shares[..., 1:] * concrete
        return concrete + (self.fixed if self.mode == "fixed" else self.ratio) * abstract
