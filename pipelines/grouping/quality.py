"""How good groups are: the cosine inside them against random groups and against each sample's nearest neighbours."""
from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64


def report(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"], cosines: Float32[np.ndarray, "N k"],
           groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"], seed: int) -> dict[str, Any]:
    """Mean useful cosine in a group, in random groups and of the nearest G - 1 (which no partition passes); clashes.

    `cosines` are those of the nearest samples of another class, best first.
    """
    size = groups.shape[1]
    in_group, clashes = useful_cosine(vectors, labels, groups, real)
    shuffled = np.random.default_rng(seed).permutation(len(vectors))[:len(vectors) // size * size].reshape(-1, size)
    random, _ = useful_cosine(vectors, labels, shuffled, np.ones(shuffled.shape, np.bool_))
    bound = float(np.maximum(cosines[:, :size - 1], 0).mean()) if size > 1 else 0.0
    return {"in_group": in_group, "random": random, "bound": bound, "clashes": clashes}


def useful_cosine(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"],
                  groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"]) -> tuple[float, int]:
    """Mean cosine of the pairs in a group (duplicates count 0, copies not at all), and how many are duplicates."""
    size = groups.shape[1]
    total, pairs, clashes = 0.0, 0, 0
    for a in range(size):
        for b in range(a + 1, size):
            clash = _clash(labels[groups[:, a]], labels[groups[:, b]])
            cosine = np.einsum("nd,nd->n", vectors[groups[:, a]], vectors[groups[:, b]])
            counts = real[:, a] & real[:, b]
            total += float(cosine[counts & ~clash].sum())
            pairs += int(counts.sum())
            clashes += int(clash.sum())
    return total / max(1, pairs), clashes


def _clash(a: Int32[np.ndarray, "n C"], b: Int32[np.ndarray, "n C"]) -> Bool[np.ndarray, " n"]:
    return ((a[:, :, None] == b[:, None, :]) & (a[:, :, None] >= 0)).any(axis=(1, 2))
