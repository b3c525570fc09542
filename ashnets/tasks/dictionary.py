"""Masked vision modelling on SOHO's visual dictionary: predicts the entry that masked tokens belong to."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ashnets.config import MVMConfig
from ashnets.model import VisualFeatures
from ashnets.tasks.contrast import weighted_mean
from ashnets.tasks.mvm import prediction_head

LOGIT_TEMPERATURE = 0.07


def index_mask(indices: Int64[Tensor, "B N"], cap: float, generator: torch.Generator) -> Bool[Tensor, "B N"]:
    """Mask every token that carries the same index as one randomly picked token (SOHO), so that none leaks it.

    A random part of them where they exceed `cap` * N tokens; never empty.
    """
    samples, tokens = indices.shape
    device = indices.device
    picked = torch.randint(tokens, (samples, 1), generator=generator).to(device)
    priority = torch.rand(samples, tokens, generator=generator).to(device)
    same = indices == indices.gather(1, picked)
    chosen = priority.masked_fill(~same, -1).topk(max(1, int(cap * tokens)), 1).indices
    return torch.zeros_like(same).scatter(1, chosen, True) & same


class DictionaryMVM(nn.Module):
    """Entries follow the visual tokens by a moving average (van den Oord et al. 2017; SOHO 2021); cosine logits.

    The dictionary is the buffer `sums` (an entry's direction is what counts); it changes only in `update`, called
    after the optimizer step, so that every rank holds the same one.
    """

    sums: Float[Tensor, "S D"]

    def __init__(self, width: int, config: MVMConfig) -> None:
        super().__init__()
        self.config = config
        self.head = prediction_head(width, width)
        self.register_buffer("sums", F.normalize(torch.randn(config.dictionary_size, width), dim=-1))

    def targets(self, visual: VisualFeatures) -> Int64[Tensor, "B N"]:
        """The entry nearest by cosine to each visual token."""
        return self._similarity(visual.tokens.detach()).argmax(-1)

    def mask(self, targets: Int64[Tensor, "B N"], grid: tuple[int, int],
             generator: torch.Generator) -> Bool[Tensor, "B N"]:
        """All tokens of one index (see `index_mask`)."""
        return index_mask(targets, self.config.max_rate, generator)

    def token_losses(self, states: Float[Tensor, "P D"], targets: Int64[Tensor, "P"]) -> Float[Tensor, "P"]:
        """Cross-entropy over the entries' cosines with the predicted direction."""
        return F.cross_entropy(self._similarity(self.head(states)) / LOGIT_TEMPERATURE, targets, reduction="none")

    def forward(self, states: Float[Tensor, "F N D"], targets: Int64[Tensor, "F N"], mask: Bool[Tensor, "F N"],
                weight: Float[Tensor, "F"]) -> Float[Tensor, ""]:
        """Mean of `token_losses` over masked tokens of fused visual states."""
        return weighted_mean(self.token_losses(states[mask], targets[mask]), weight[:, None].expand_as(mask)[mask])

    def frequencies(self, targets: Int64[Tensor, "P"]) -> Float[Tensor, "S"]:
        """How often each entry occurs: what the best constant prediction is made of."""
        return torch.bincount(targets, minlength=len(self.sums)).double()

    @staticmethod
    def reference(frequencies: Float[Tensor, "S"], tokens: float) -> float:
        """Loss of predicting every entry by its share of `tokens` tokens: the entropy of the entries."""
        return float(torch.special.entr(frequencies.double() / tokens).sum())

    @torch.no_grad()
    def statistics(self, tokens: Float[Tensor, "B N D"], targets: Int64[Tensor, "B N"],
                   weight: Float[Tensor, "B"]) -> Float[Tensor, "S D"]:
        """Sum of each entry's unit-norm tokens in samples that count; these sums add up over micro-batches."""
        directions = F.normalize(tokens.float(), dim=-1) * (weight > 0)[:, None, None]
        return torch.zeros_like(self.sums).index_add_(0, targets.flatten(), directions.flatten(0, 1))

    @torch.no_grad()
    def update(self, sums: Float[Tensor, "S D"]) -> None:
        """Move the entries towards the mean direction of their tokens; entries without tokens stay."""
        decay, seen = self.config.dictionary_decay, (sums != 0).any(1, keepdim=True)
        self.sums.copy_(torch.where(seen, decay * self.sums + (1 - decay) * sums, self.sums))

    def _similarity(self, tokens: Float[Tensor, "*A D"]) -> Float[Tensor, "*A S"]:
        """Cosines of tokens and entries, in fp32."""
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(tokens.float(), dim=-1) @ F.normalize(self.sums, dim=-1).T
