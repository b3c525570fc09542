"""Duplicate classes: which samples show the same picture, look the same to the embedding, or say the same words."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MOST_OF_ALL = 0.5
"""A cosine that makes one class of a larger share of the samples tells nothing."""


def duplicate_labels(image_class: Sequence[int], caption_class: Sequence[Sequence[int]]) -> Int32[np.ndarray, "N C"]:
    """Compact labels of every sample, -1 padded on the right: two samples clash where they share a label.

    A label stands for an image class or a caption class that two or more samples have; the others are left
    out, so most rows are short. Sharing is not made transitive: a chain of captions joins no strangers.
    """
    samples = len(image_class)
    captions = np.fromiter((c for classes in caption_class for c in classes), np.int64)
    owners = np.repeat(np.arange(samples), [len(classes) for classes in caption_class])
    image_keys = np.unique(np.asarray(image_class, np.int64), return_inverse=True)[1]
    caption_keys = np.unique(captions, return_inverse=True)[1] + image_keys.max(initial=-1) + 1
    pairs = np.unique(np.stack([np.concatenate([np.arange(samples), owners]),
                                np.concatenate([image_keys, caption_keys])], axis=1), axis=0)
    pairs = pairs[np.bincount(pairs[:, 1])[pairs[:, 1]] > 1] if len(pairs) else pairs
    label = np.unique(pairs[:, 1], return_inverse=True)[1]
    count = np.bincount(pairs[:, 0], minlength=samples)
    first = np.cumsum(count) - count
    labels = np.full((samples, int(count.max(initial=0))), -1, np.int32)
    labels[pairs[:, 0], np.arange(len(pairs)) - first[pairs[:, 0]]] = label
    return labels


def unite(image_class: Int64[np.ndarray, " N"], pairs: Int64[np.ndarray, "P 2"]) -> Int64[np.ndarray, " N"]:
    """Image classes in which the samples of every pair have one class, transitively: the smallest of those united."""
    classes, position = np.unique(image_class, return_inverse=True)
    a, b = position[pairs[:, 0]], position[pairs[:, 1]]
    graph = coo_array((np.ones(len(pairs), np.int8), (a, b)), shape=(len(classes), len(classes)))
    _, component = connected_components(graph, directed=False)
    smallest = np.full(component.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, component, classes)
    united: Int64[np.ndarray, " N"] = smallest[component][position]
    return united


def check_cosine(united: Int64[np.ndarray, " N"], cosine: float) -> None:
    """ValueError where `groups.duplicate_cosine` made one class of most samples: nothing would be left to contrast."""
    largest = int(np.unique(united, return_counts=True)[1].max(initial=0))
    if largest > max(2, MOST_OF_ALL * len(united)):
        raise ValueError(f"groups.duplicate_cosine={cosine} makes one picture of {largest} of the {len(united)} "
                         "samples: raise it, or compare by a model that tells them apart")


def describe(image_class: Int64[np.ndarray, " N"], united: Int64[np.ndarray, " N"]) -> dict[str, int]:
    """How many classes have several samples, how many samples those are, the largest; `by_cosine`: classes united."""
    counts = np.unique(united, return_counts=True)[1]
    several = counts[counts > 1]
    return {"classes": len(several), "samples": int(several.sum()), "largest": int(counts.max(initial=0)),
            "by_cosine": len(np.unique(image_class)) - len(counts)}
