"""Image-text retrieval: recall at k after the Karpathy protocol, with repeated captions and pictures as matches."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

CHUNK = 1024  # queries ranked at a time


def matches(image_of_caption: Int64[Tensor, "C"], caption_class: Int64[Tensor, "C"],
            image_class: Int64[Tensor, "I"]) -> Bool[Tensor, "I C"]:
    """Where caption c describes image i: some caption of equal class belongs to a picture of equal class.

    Raises ValueError where an image has no caption.
    """
    pictures, picture = image_class.unique(return_inverse=True)
    words, word = caption_class.unique(return_inverse=True)
    described = torch.zeros(len(pictures), len(words), dtype=torch.bool, device=image_class.device)
    described[picture[image_of_caption], word] = True
    if not described.any(1).all():
        raise ValueError("retrieval needs at least one caption for every image")
    return described[picture][:, word]


def recalls(similarity: Float[Tensor, "I C"], image_of_caption: Int64[Tensor, "C"],
            caption_class: Int64[Tensor, "C"], image_class: Int64[Tensor, "I"],
            ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`i2t_r<k>` and `t2i_r<k>` as fractions.

    Image to text: a hit where the best-ranked of an image's captions is among the first k of all captions. Text to
    image: a hit where the caption's picture is. A match ranks behind every non-match with the same score (and
    behind NaN), so ties never help.
    """
    match = matches(image_of_caption, caption_class, image_class)
    ranks = {"i2t": best_ranks(similarity, match), "t2i": best_ranks(similarity.T, match.T)}
    return {f"{way}_r{k}": float((rank < k).double().mean()) for way, rank in ranks.items() for k in ks}


def best_ranks(similarity: Float[Tensor, "Q C"], match: Bool[Tensor, "Q C"]) -> Int64[Tensor, "Q"]:
    """Number of non-matches that do not score below the query's best match: its rank, from 0, ties against us."""
    ranks = []
    for scores, true in zip(similarity.split(CHUNK), match.split(CHUNK), strict=True):
        best = scores.masked_fill(~true, -torch.inf).amax(1, keepdim=True)
        ranks.append((~(scores < best) & ~true).sum(1))
    return torch.cat(ranks)


def chance(image_of_caption: Int64[Tensor, "C"], caption_class: Int64[Tensor, "C"], image_class: Int64[Tensor, "I"],
           ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """What `recalls` gives on average for random similarities: 1 - C(n - m, k) / C(n, k) for m matches among n."""
    match = matches(image_of_caption, caption_class, image_class)
    return {f"{way}_r{k}": float(_hit_probability(true.sum(1), true.shape[1], k).mean())
            for way, true in (("i2t", match), ("t2i", match.T)) for k in ks}


def _hit_probability(found: Int64[Tensor, "Q"], among: int, k: int) -> Float[Tensor, "Q"]:
    missed = torch.ones(len(found), dtype=torch.float64, device=found.device)
    for drawn in range(min(k, among)):
        missed *= (among - found - drawn).clamp(min=0).double() / (among - drawn)
    return 1 - missed
