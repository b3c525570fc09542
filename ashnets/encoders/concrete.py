"""Visual concrete encoder: continuous latents from the feature map (SOHO's neck)."""
from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sine_positions(height: int, width: int, channels: int, device: torch.device | str = "cpu",
                   ) -> Float[Tensor, "N D"]:
    """2-D sine positions of a map, row by row: half of the channels for y, half for x (as in DETR and SOHO).

    Coordinates are scaled to (0, 2 pi], so the same place has the same code at any resolution. `channels` is a
    multiple of 4.
    """
    quarter = channels // 4
    frequency = 10000.0 ** (-torch.arange(quarter, device=device) / quarter)
    codes = []
    for size in (height, width):
        angle = 2 * math.pi * torch.arange(1, size + 1, device=device)[:, None] / size * frequency
        codes.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    rows = codes[0][:, None].expand(height, width, -1)
    columns = codes[1][None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class ConcreteEncoder(nn.Module):
    """1x1 convolution and BatchNorm to width D, plus 2-D sine positions, LayerNorm: one token a place of the map."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.token_norm = nn.LayerNorm(width)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N D"]:
        """Tokens in row-major order, N = h * w."""
        latents = self.norm(self.project(features)).float()
        height, width = latents.shape[-2:]
        tokens = latents.flatten(2).transpose(1, 2)
        return self.token_norm(tokens + sine_positions(height, width, tokens.shape[-1], tokens.device))
