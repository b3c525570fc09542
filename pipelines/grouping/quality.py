"""How good groups are: the cosine inside them against random groups and against each sample's nearest neighbours."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

CHUNK = 65_536


def report(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"], cosines: Float32[np.ndarray, "N k"],
           groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"], seed: int) -> dict[str, Any]:
    """Mean useful cosine in a group, in random groups and of the nearest G - 1 (which no partition passes); clashes.

    `cosines` are those of the nearest samples of another class, best first.
    """
    in_group, clashes = useful_cosine(vectors, labels, groups, real)
    shuffled = random_groups(len(vectors), groups.shape[1], seed)
    random, _ = useful_cosine(vectors, labels, shuffled, np.ones(shuffled.shape, np.bool_))
    return {"in_group": in_group, "random": random, "bound": float(bounds(cosines, groups.shape[1]).mean()),
            "clashes": clashes}


def random_groups(samples: int, size: int, seed: int) -> Int64[np.ndarray, "n G"]:
    """Random groups of whole size; the remainder is left out."""
    return np.random.default_rng(seed).permutation(samples)[:samples // size * size].reshape(-1, size)


def bounds(cosines: Float32[np.ndarray, "N k"], size: int) -> Float32[np.ndarray, " N"]:
    """Each sample's mean cosine to its G - 1 nearest of another class: more it cannot have in any group."""
    if size == 1:
        return np.zeros(len(cosines), np.float32)
    found: Float32[np.ndarray, " N"] = np.maximum(cosines[:, :size - 1], 0).mean(axis=1)
    return found


def useful_cosine(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"],
                  groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"]) -> tuple[float, int]:
    """Mean cosine of the pairs in a group (duplicates count 0, copies not at all), and how many are duplicates."""
    total, pairs, clashes = 0.0, 0, 0
    for _, _, _, cosine, clash, counts in _pairs(vectors, labels, groups, real):
        total += float(cosine[counts & ~clash].sum())
        pairs += int(counts.sum())
        clashes += int(clash.sum())
    return total / max(1, pairs), clashes


def member_cosines(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"],
                   groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"]) -> Float32[np.ndarray, "n G"]:
    """Each member's mean useful cosine to the others of its group; NaN for copies and in groups of one."""
    total, others = np.zeros(groups.shape, np.float32), np.zeros(groups.shape, np.int64)
    for rows, a, b, cosine, clash, counts in _pairs(vectors, labels, groups, real):
        for place in (a, b):
            total[rows, place] += np.where(counts & ~clash, cosine, 0)
            others[rows, place] += counts
    with np.errstate(invalid="ignore"):
        return np.where(others > 0, total / np.maximum(others, 1), np.nan).astype(np.float32)


def _pairs(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"], groups: Int64[np.ndarray, "n G"],
           real: Bool[np.ndarray, "n G"]) -> Iterator[tuple[slice, int, int, Any, Any, Any]]:
    """Rows, two places, and for each of the rows their cosine, whether they clash, and whether both are real."""
    for start in range(0, len(groups), CHUNK):
        rows = slice(start, start + CHUNK)
        for a in range(groups.shape[1]):
            for b in range(a + 1, groups.shape[1]):
                first, second = groups[rows, a], groups[rows, b]
                yield (rows, a, b, np.einsum("nd,nd->n", vectors[first], vectors[second]),
                       _clash(labels[first], labels[second]), real[rows, a] & real[rows, b])


def _clash(a: Int32[np.ndarray, "n C"], b: Int32[np.ndarray, "n C"]) -> Bool[np.ndarray, " n"]:
    return ((a[:, :, None] == b[:, None, :]) & (a[:, :, None] >= 0)).any(axis=(1, 2))
