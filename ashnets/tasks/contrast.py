"""Contrast images with texts, leaving out pairs that are no true negatives (shared by ITC and STUA)."""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ashnets.batch import MicroBatch


@dataclass(frozen=True)
class Embedded:
    """Unit-norm embeddings of images or of texts, and what decides whom each may be contrasted with.

    Texts carry the class of their image and their own caption class, images all K of their caption classes.
    """

    embeddings: Float[Tensor, "A E"]
    image_class: Int64[Tensor, "A"]
    caption_class: Int64[Tensor, "A K"]
    weight: Float[Tensor, "A"]


def images_of(batch: MicroBatch, embeddings: Float[Tensor, "B E"]) -> Embedded:
    """The images of a micro-batch."""
    return Embedded(embeddings, batch.image_class, batch.caption_class, batch.weight)


def texts_of(batch: MicroBatch, embeddings: Float[Tensor, "M E"]) -> Embedded:
    """The texts of a micro-batch, in the order [B * K]."""
    captions = batch.caption_class.shape[1]
    return Embedded(embeddings, batch.image_class.repeat_interleave(captions), batch.caption_class.reshape(-1, 1),
                    batch.weight.repeat_interleave(captions))


def weighted_mean(values: Float[Tensor, "A"], weight: Float[Tensor, "A"]) -> Float[Tensor, ""]:
    """sum(weight * values) / sum(weight) in fp32; exactly zero, with a graph, where every weight is 0."""
    values, weight = values.float(), weight.float()
    return (values * weight).sum() / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)


def duplicates(a: Embedded, b: Embedded) -> Bool[Tensor, "A C"]:
    """Where a and b show the same picture or share a caption, so that they are no true negatives."""
    same_picture = a.image_class[:, None] == b.image_class[None, :]
    same_caption = (a.caption_class[:, None, :, None] == b.caption_class[None, :, None, :]).flatten(2).any(-1)
    return same_picture | same_caption


def info_nce(images: Embedded, texts: Embedded, temperature: Tensor | float, other_images: Embedded | None = None,
             other_texts: Embedded | None = None) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (CLIP, ALBEF) over true pairs, with duplicates and weight-0 samples out of the denominator.

    Text j belongs to image j // K. `other_images` and `other_texts` replace the micro-batch's own as the set to
    contrast with (gathered, or with a memory); the true pair always counts. fp32 whatever autocast says.
    """
    with torch.autocast(images.embeddings.device.type, enabled=False):
        captions = len(texts.embeddings) // len(images.embeddings)
        own_image = torch.arange(len(images.embeddings), device=images.embeddings.device).repeat_interleave(captions)
        positive = (images.embeddings.float()[own_image] * texts.embeddings.float()).sum(-1) / temperature
        to_text = _negatives(images, other_texts or texts, temperature)[own_image]
        to_image = _negatives(texts, other_images or images, temperature)
        # -log(exp(p) / (exp(p) + sum of negatives)) = softplus(logsumexp(negatives) - p)
        return weighted_mean((F.softplus(to_text - positive) + F.softplus(to_image - positive)) / 2, texts.weight)


def _negatives(anchors: Embedded, others: Embedded, temperature: Tensor | float) -> Float[Tensor, "A"]:
    """Log of the summed exponentials of every anchor's true negatives."""
    logits = anchors.embeddings.float() @ others.embeddings.float().T / temperature
    out = duplicates(anchors, others) | (others.weight == 0)
    return logits.masked_fill(out, -torch.inf).logsumexp(-1)
