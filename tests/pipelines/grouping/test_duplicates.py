"""Duplicate labels against the definition: two samples clash where they share a picture or a caption."""
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.grouping.duplicates import duplicate_labels
from pipelines.grouping.pairs import clash

samples = st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 9), max_size=3)), min_size=1, max_size=12)


@settings(deadline=None)
@given(samples)
def test_clash_is_a_shared_class(drawn: list[tuple[int, list[int]]]) -> None:
    labels = duplicate_labels([image for image, _ in drawn], [captions for _, captions in drawn])
    for i, (image, captions) in enumerate(drawn):
        for j, (other_image, other_captions) in enumerate(drawn):
            if i != j:
                assert clash(labels, i, j) == (image == other_image or bool(set(captions) & set(other_captions)))


def test_a_picture_and_a_caption_of_equal_number_are_no_duplicates() -> None:
    assert duplicate_labels([5, 6], [[7], [5]]).shape == (2, 0)


def test_sharing_is_not_transitive() -> None:
    labels = duplicate_labels([1, 2, 3], [[10], [10, 11], [11]])
    assert clash(labels, 0, 1) and clash(labels, 1, 2) and not clash(labels, 0, 2)


def test_unshared_classes_take_no_room() -> None:
    labels = duplicate_labels(np.arange(50), [[100 + i, 200 + i] for i in range(50)])
    assert labels.shape == (50, 0)
