"""Duplicate labels against the definition: two samples clash where they share a picture or a caption."""
from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.grouping.duplicates import check_cosine, describe, duplicate_labels, unite
from pipelines.grouping.neighbours import pairs_above
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


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5).map(lambda n: n * 2**60), min_size=1, max_size=12), st.data())
def test_united_classes_are_the_connected_ones_named_by_the_smallest(classes: list[int], data: st.DataObject) -> None:
    row = st.integers(0, len(classes) - 1)
    pairs = data.draw(st.lists(st.tuples(row, row), max_size=8))
    graph = networkx.Graph()
    graph.add_nodes_from(classes)
    graph.add_edges_from((classes[a], classes[b]) for a, b in pairs)
    smallest = {c: min(together) for together in networkx.connected_components(graph) for c in together}
    united = unite(np.array(classes, np.int64), np.array(pairs, np.int64).reshape(-1, 2))
    assert united.tolist() == [smallest[c] for c in classes]
    told = describe(np.array(classes, np.int64), united)
    assert told["by_cosine"] == len(set(classes)) - len(set(smallest.values()))
    assert told["largest"] == max(united.tolist().count(c) for c in united.tolist())
    assert told["samples"] == sum(united.tolist().count(c) > 1 for c in united.tolist())


def test_pairs_connect_a_class_of_any_size() -> None:
    """Each of 300 equal vectors has more equals than a search looks at."""
    vectors = np.repeat(np.eye(3, 8, dtype=np.float32), (300, 40, 1), axis=0)
    united = unite(np.arange(341), pairs_above(vectors, 0.99))
    assert united.tolist() == [0] * 300 + [300] * 40 + [340]


def test_one_class_of_most_samples_is_refused() -> None:
    check_cosine(np.array([0, 0, 1, 2]), 0.9)
    with pytest.raises(ValueError, match=r"groups.duplicate_cosine=0.9 makes one picture of 3 of the 4 samples"):
        check_cosine(np.array([0, 0, 0, 2]), 0.9)
