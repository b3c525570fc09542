"""Semantic text-unilateral alignment: moves the spiking feature towards the text feature, and never the reverse."""
from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.batch import MicroBatch
from ashnets.config import STUAConfig
from ashnets.tasks.contrast import images_of, info_nce, texts_of, weighted_mean


class STUA(nn.Module):
    """The mean-pooled abstract feature, projected into the text feature space: contrast + (1 - cosine).

    The form of the loss is our reading (assumption); unilateral, and relying on text features alone, is the paper's.
    """

    def __init__(self, width: int, text_width: int, config: STUAConfig) -> None:
        super().__init__()
        self.project = nn.Linear(width, text_width)
        self.contrast_temperature = config.temperature

    def embed_abstract(self, abstract: Float[Tensor, "B N D"]) -> Float[Tensor, "B Dt"]:
        """Unit-norm fp32 image of the spiking feature in the text feature space."""
        return F.normalize(self.project(abstract.mean(1)).float(), dim=-1)

    def forward(self, abstract: Float[Tensor, "B N D"], pooled: Float[Tensor, "M Dt"],
                batch: MicroBatch) -> Float[Tensor, ""]:
        """The loss; no gradient reaches the text side."""
        spiking = self.embed_abstract(abstract)
        text = F.normalize(pooled.detach().float(), dim=-1)
        images, texts = images_of(batch, spiking), texts_of(batch, text)
        cosine = (spiking.repeat_interleave(len(text) // len(spiking), 0) * text).sum(-1)
        return info_nce(images, texts, self.contrast_temperature) + weighted_mean(1 - cosine, texts.weight)
