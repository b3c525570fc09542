"""Copies of a picture: equal pixels, or perceptual hashes a few bits apart, among many rows at once."""
from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Bool, Int64, UInt64
from numpy import ndarray

NEAR_BITS = 4
"""Hashes of 64 bits that differ in at most so many count as copies."""
_QUERIES = 65_536


@dataclass(frozen=True)
class Pictures:
    """What is known of some rows' pictures."""

    classes: Int64[ndarray, " N"]
    hashes: UInt64[ndarray, " N"]
    train: Bool[ndarray, " N"]


@dataclass(frozen=True)
class Copies:
    """Which of the new rows show a picture again, and which of the evaluation's rows are trained on."""

    exact: Bool[ndarray, " N"]
    """An equal picture comes before it."""
    near: Bool[ndarray, " N"]
    """No equal one, but a similar one comes before it."""
    leaked: Bool[ndarray, " N"]
    """A row for evaluation whose copy the store holds for training."""


def find_copies(new: Pictures, known: Pictures) -> Copies:
    """Compare the new rows with each other and with those that the store holds.

    Which of two copies comes first: the store's, then rows for evaluation, then the earlier one. So a training row is
    the copy of an evaluation row, never the other way round.
    """
    order = np.argsort(new.train, kind="stable")
    before = len(known.classes)
    classes = np.concatenate([known.classes, new.classes[order]])
    hashes = np.concatenate([known.hashes, new.hashes[order]])
    _, first, at = np.unique(classes, return_index=True, return_inverse=True)
    exact, near = np.zeros((2, len(order)), bool)
    position = np.arange(before, len(classes))
    exact[order] = first[at[before:]] < position
    near[order] = first_similar(hashes)[before:] < position
    return Copies(exact, near & ~exact, ~new.train & _among(new, known))


def first_similar(hashes: UInt64[ndarray, " N"]) -> Int64[ndarray, " N"]:
    """For every hash the first place at which one stands that differs in at most NEAR_BITS bits (its own, at last)."""
    if not len(hashes):
        return np.empty(0, np.int64)
    unique, first, at = np.unique(hashes, return_index=True, return_inverse=True)
    codes = unique[:, None].view(np.uint8)
    # Of 5 disjoint parts of a hash at least one stays whole where at most 4 bits differ: no pair is missed.
    index = faiss.IndexBinaryMultiHash(64, NEAR_BITS + 1, 64 // (NEAR_BITS + 1))
    index.add(codes)
    smallest = first.copy()
    for start in range(0, len(codes), _QUERIES):
        limits, _, found = index.range_search(codes[start:start + _QUERIES], NEAR_BITS + 1)
        counts = limits[1:].astype(np.int64) - limits[:-1].astype(np.int64)
        queries = np.repeat(np.arange(start, start + len(counts)), counts)
        np.minimum.at(smallest, queries, first[found])
    result: Int64[ndarray, " N"] = smallest[at]
    return result


def _among(new: Pictures, known: Pictures) -> Bool[ndarray, " N"]:
    """Which of the new rows have a copy among the store's training rows."""
    classes, hashes = known.classes[known.train], known.hashes[known.train]
    similar = first_similar(np.concatenate([hashes, new.hashes]))[len(hashes):] < len(hashes)
    result: Bool[ndarray, " N"] = np.isin(new.classes, classes) | similar
    return result
