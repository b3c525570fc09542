"""Duplicate labels: which samples show the same picture or say the same words."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32


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
