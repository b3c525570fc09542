"""Masked language modelling: predicts masked word pieces of a matched text with the help of its image."""
from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ashnets.tasks.contrast import weighted_mean

IGNORED = -100


class MLM(nn.Module):
    """BERT's prediction head; its decoder *is* the fusion's word embedding, frozen or trained, with its own bias."""

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        width = words.embedding_dim
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.decoder = nn.Linear(width, words.num_embeddings)
        self.decoder.weight = words.weight
        nn.init.zeros_(self.decoder.bias)

    def predict(self, states: Float[Tensor, "P D"]) -> Float[Tensor, "P V"]:
        """Logits over the vocabulary."""
        return self.decoder(self.transform(states)).float()

    def forward(self, states: Float[Tensor, "M L D"], labels: Int64[Tensor, "M L"],
                weight: Float[Tensor, "M"]) -> Float[Tensor, ""]:
        """Cross-entropy over the masked pieces of matched pairs; only there are logits computed."""
        masked = labels != IGNORED
        loss = F.cross_entropy(self.predict(states[masked]), labels[masked], reduction="none")
        return weighted_mean(loss, weight[:, None].expand_as(labels)[masked])

    def correct_words(self, states: Float[Tensor, "M L D"], labels: Int64[Tensor, "M L"]) -> Bool[Tensor, "P"]:
        """Which of the P masked pieces the head gets right (its measure, with the right and with a wrong image)."""
        masked = labels != IGNORED
        return self.predict(states[masked]).argmax(-1) == labels[masked]
