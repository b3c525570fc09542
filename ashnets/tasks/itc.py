"""Image-text contrast: pulls the pooled visual tokens and the text feature of a true pair together."""
from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from ashnets.config import ITCConfig
from ashnets.tasks.contrast import Embedded, info_nce

TEMPERATURE_RANGE = (0.001, 0.5)  # ALBEF's clamp


class ITC(nn.Module):
    """Linear projections to E, a learned temperature, symmetric InfoNCE with duplicate pairs masked.

    With `memory` past pairs, one an image, serve as further negatives (XBM, Wang et al. 2020): they change only in
    `append`, which the trainer calls after the optimizer step, so that every rank holds the same ones.
    """

    memory_image: Float[Tensor, "Q E"]
    memory_text: Float[Tensor, "Q E"]
    memory_image_class: Int64[Tensor, "Q"]
    memory_caption_class: Int64[Tensor, "Q"]
    memory_weight: Float[Tensor, "Q"]  # 0 where nothing is remembered yet

    def __init__(self, width: int, text_width: int, embedding: int, config: ITCConfig) -> None:
        super().__init__()
        self.gather = config.gather
        self.memory = config.memory
        self.image = nn.Linear(width, embedding)
        self.text = nn.Linear(text_width, embedding)
        self.log_temperature = nn.Parameter(torch.tensor([math.log(config.temperature)]))
        if self.memory:
            self.register_buffer("memory_image", torch.zeros(self.memory, embedding))
            self.register_buffer("memory_text", torch.zeros(self.memory, embedding))
            self.register_buffer("memory_image_class", torch.zeros(self.memory, dtype=torch.int64))
            self.register_buffer("memory_caption_class", torch.zeros(self.memory, dtype=torch.int64))
            self.register_buffer("memory_weight", torch.zeros(self.memory))

    def embed_image(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B E"]:
        """Unit-norm fp32 embeddings of images from their visual tokens V."""
        return F.normalize(self.image(tokens.mean(1)).float(), dim=-1)

    def embed_text(self, pooled: Float[Tensor, "M Dt"]) -> Float[Tensor, "M E"]:
        """Unit-norm fp32 embeddings of texts from their text features."""
        return F.normalize(self.text(pooled).float(), dim=-1)

    @property
    def temperature(self) -> Float[Tensor, "1"]:
        """The temperature inside its range; the gradient passes the clamp, so that it can come back."""
        value = self.log_temperature.exp()
        return value + (value.clamp(*TEMPERATURE_RANGE) - value).detach()

    def forward(self, images: Embedded, texts: Embedded) -> Float[Tensor, ""]:
        """The loss of a micro-batch's embeddings (see `info_nce`)."""
        other_images, other_texts = images, texts
        if self.gather and dist.is_initialized():
            other_images, other_texts = _all_ranks(images), _all_ranks(texts)
        if self.memory:
            other_images = _join(other_images, self._remembered(self.memory_image))
            other_texts = _join(other_texts, self._remembered(self.memory_text))
        return info_nce(images, texts, self.temperature, other_images, other_texts)

    @torch.no_grad()
    def append(self, image_embeddings: Float[Tensor, "A E"], text_embeddings: Float[Tensor, "A E"],
               image_class: Int64[Tensor, "A"], caption_class: Int64[Tensor, "A"],
               weight: Float[Tensor, "A"]) -> None:
        """Remember these pairs, oldest first, forgetting the oldest beyond `memory`; weight-0 pairs are left out."""
        new = {"memory_image": image_embeddings, "memory_text": text_embeddings, "memory_image_class": image_class,
               "memory_caption_class": caption_class, "memory_weight": weight}
        for name, values in new.items():
            kept = getattr(self, name)
            kept.copy_(torch.cat([kept, values[weight > 0].to(kept)])[-self.memory:])

    def _remembered(self, embeddings: Float[Tensor, "Q E"]) -> Embedded:
        return Embedded(embeddings, self.memory_image_class, self.memory_caption_class[:, None], self.memory_weight)


def _join(a: Embedded, b: Embedded) -> Embedded:
    """Both; caption classes are padded to the same K by repeating the first, which changes no comparison."""
    captions = max(a.caption_class.shape[1], b.caption_class.shape[1])
    padded = [torch.cat([x.caption_class, x.caption_class[:, :1].expand(-1, captions - x.caption_class.shape[1])], 1)
              for x in (a, b)]
    return Embedded(torch.cat([a.embeddings, b.embeddings]), torch.cat([a.image_class, b.image_class]),
                    torch.cat(padded), torch.cat([a.weight, b.weight]))


def _all_ranks(local: Embedded) -> Embedded:
    """The same of all ranks, in rank order; gradients flow back to the rank that owns an embedding."""
    def gathered(values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    return Embedded(torch.cat(all_gather(local.embeddings)), gathered(local.image_class),
                    gathered(local.caption_class), gathered(local.weight))
