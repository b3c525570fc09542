"""Image-text matching: tells an image's true text from a wrong one, and chooses the wrong one."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ashnets.tasks.contrast import weighted_mean


class ITM(nn.Module):
    """One logit from the fused [CLS] and the product of the mean fused text and visual tokens; cross-entropy."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def match(self, cls: Float[Tensor, "M D"], text: Float[Tensor, "M L D"], visual: Float[Tensor, "M N D"],
              attention_mask: Int64[Tensor, "M L"]) -> Float[Tensor, "M"]:
        """The logit of "this text belongs to this image"."""
        real = attention_mask[:, :, None].to(text.dtype)
        mean_text = (text * real).sum(1) / real.sum(1).clamp(min=1)
        return self.head(torch.cat([cls, mean_text * visual.mean(1)], -1)).squeeze(-1).float()

    def forward(self, logits: Float[Tensor, "2F"], weight: Float[Tensor, "2F"]) -> Float[Tensor, ""]:
        """Loss of `match` logits whose first half are true pairs and whose second half are wrong ones."""
        truth = torch.ones_like(logits)
        truth[len(logits) // 2:] = 0
        return weighted_mean(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), weight)


def allowed_negatives(image_class: Int64[Tensor, "F"], captions: Int64[Tensor, "F K"], text: Int64[Tensor, "F"],
                      weight: Float[Tensor, "F"]) -> Bool[Tensor, "F F"]:
    """Where text j is certainly wrong for image i: another picture, none of i's captions, and both count.

    `captions` are the caption classes of each image, `text` is the class of the one caption that it brings.
    """
    other_picture = image_class[:, None] != image_class[None, :]
    other_caption = (captions[:, None, :] != text[None, :, None]).all(-1)
    counts = weight > 0
    return other_picture & other_caption & counts[:, None] & counts[None, :]


def choose_negatives(similarity: Float[Tensor, "F F"], allowed: Bool[Tensor, "F F"], group: Int64[Tensor, "F"],
                     hard_share: float, generator: torch.Generator) -> tuple[Int64[Tensor, "F"], Bool[Tensor, "F"]]:
    """A wrong text for each image, and whether there is one (else the image's own index stands there).

    An image draws uniformly from all allowed texts, or with probability `hard_share` from those of its group (of
    everybody, where the group has none) by softmax of `similarity` (in units of the temperature; ALBEF's sampling).
    """
    device = similarity.device
    gumbel = -torch.empty(similarity.shape).exponential_(generator=generator).log().to(device)
    hard = (torch.rand(len(similarity), generator=generator) < hard_share).to(device)[:, None]
    mates = allowed & (group[:, None] == group[None, :])
    pool = torch.where(hard & mates.any(1, keepdim=True), mates, allowed)
    # The largest of logits + Gumbel noise is a draw from their softmax, with all noise from the CPU generator.
    scores = torch.where(hard, similarity.detach().float(), torch.zeros(())) + gumbel
    chosen = scores.masked_fill(~pool, -torch.inf).argmax(1)
    found = allowed.any(1)
    return torch.where(found, chosen, torch.arange(len(chosen), device=device)), found


def correct_matches(logits: Float[Tensor, "M"], matched: bool) -> Bool[Tensor, "M"]:
    """Where the head decides rightly about pairs that are all matched, or all mismatched."""
    return (logits > 0) == matched
