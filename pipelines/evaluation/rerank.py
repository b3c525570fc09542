"""Retrieval re-ranked by the fusion: ITC proposes, ITM decides among the proposals (ALBEF, section 3.3)."""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ashnets.metrics.retrieval import recalls
from ashnets.tasks.pretraining import PretrainingModel
from pipelines.evaluation.features import Features
from pipelines.evaluation.split import HeldOutSplit

FUSION_BATCH = 256


@torch.no_grad()
def reranked(model: PretrainingModel, split: HeldOutSplit, features: Features, candidates: int,
             device: torch.device) -> dict[str, float]:
    """`i2t_r<k>` and `t2i_r<k>` over each image's first caption, where the best `candidates` of every query are
    scored by ITC's logit plus ITM's (the sum of two log-odds: our choice, ALBEF takes ITM's alone).

    Needs all images' tokens in this process. One caption an image keeps the cost at 2 * I * candidates pairs.
    """
    assert model.itc is not None and features.image is not None and features.text is not None
    assert len(features.own) == len(split)
    order = torch.empty_like(features.own)
    order[features.own] = torch.arange(len(features.own))
    texts = split.first_caption
    similarity = (features.image @ features.text[texts].T) / model.itc.temperature.float().cpu()
    candidates = min(candidates, len(split))
    wanted = torch.zeros_like(similarity, dtype=torch.bool)
    wanted.scatter_(1, similarity.topk(candidates, 1).indices, True)
    wanted.scatter_(0, similarity.topk(candidates, 0).indices, True)
    pairs = wanted.nonzero()
    logits = torch.cat([
        _match(model, split, features.tokens[order[part[:, 0]]], texts[part[:, 1]], device)
        for part in pairs.split(FUSION_BATCH)])
    scores = similarity.clone()
    scores[pairs[:, 0], pairs[:, 1]] += logits
    by_image = scores.masked_fill(~_top(similarity, candidates, 1), -torch.inf)
    by_text = scores.masked_fill(~_top(similarity, candidates, 0), -torch.inf)
    classes = (torch.arange(len(split)), split.caption_class[texts], split.image_class)
    first = recalls(by_image, *classes)
    second = recalls(by_text, *classes)
    return {key: (first if key.startswith("i2t") else second)[key] for key in first}


def _top(similarity: Float[Tensor, "I C"], k: int, dim: int) -> Tensor:
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(dim, similarity.topk(k, dim).indices, True)


def _match(model: PretrainingModel, split: HeldOutSplit, tokens: Float[Tensor, "M N D"], texts: Tensor,
           device: torch.device) -> Float[Tensor, "M"]:
    ids, attention = split.input_ids[texts].to(device), split.attention_mask[texts].to(device)
    return model.match(model.model.fuse(ids, attention, tokens.to(device), None), attention).float().cpu()
