"""Copies of a picture: equal pixels, or perceptual hashes a few bits apart, among many rows at once."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt64
from numpy import ndarray


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
    from pipelines.store.similar import first_similar  # late: numba takes a second to import

    order = np.argsort(new.train, kind="stable")
    before = len(known.classes)
    classes = np.concatenate([known.classes, new.classes[order]])
    hashes = np.concatenate([known.hashes, new.hashes[order]])
    exact, near = np.zeros((2, len(order)), bool)
    exact[order] = _again(classes)[before:]
    near[order] = first_similar(hashes, before) < np.arange(before, len(hashes))
    leaked = np.zeros(len(order), bool)
    if known.train.any():
        trained = np.concatenate([known.hashes[known.train], new.hashes])
        leaked = np.isin(new.classes, known.classes[known.train]) | (
            first_similar(trained, int(known.train.sum())) < known.train.sum())
    return Copies(exact, near & ~exact, ~new.train & leaked)


def _again(classes: Int64[ndarray, " N"]) -> Bool[ndarray, " N"]:
    """Which rows have a class that a row before them has."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    found = np.zeros(len(classes), bool)
    found[order[1:]] = ordered[1:] == ordered[:-1]
    return found
