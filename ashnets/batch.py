"""The micro-batch: what the feed hands to the model, and the atom of everything that is exact.

Shape letters of this package: B samples (groups x G), G group size, K captions an image, L text tokens,
C channels, H W pixels or map, N visual tokens, D width, E contrastive embedding, T time steps.
Sample i of group g stands at row g * G + i.
"""
from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """One atom: `groups * G` images with K captions each.

    `weight` is 0 for samples that count in no loss (padding, replaced bad samples). `image_class` and
    `caption_class` are global ids: equal ids mean the same picture, or the same words.
    """

    pixels: UInt8[Tensor, "B 3 H W"]
    input_ids: Int64[Tensor, "B K L"]
    attention_mask: Int64[Tensor, "B K L"]
    mlm_input_ids: Int64[Tensor, "B K L"]
    mlm_labels: Int64[Tensor, "B K L"]  # -100 where nothing is predicted
    image_class: Int64[Tensor, "B"]
    caption_class: Int64[Tensor, "B K"]
    weight: Float[Tensor, "B"]
    group_size: int
    position: int = 0
    epoch: int = 0
    group_ids: tuple[int, ...] = ()
    sample_ids: tuple[str, ...] = ()
    bad: tuple[tuple[str, str], ...] = ()
    """(sample id, reason) of samples that went bad, in whose place a mate stands with weight 0."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """A copy with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True)
                 for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **moved)
