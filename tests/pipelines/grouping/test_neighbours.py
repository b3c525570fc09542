"""Nearest neighbours of another class against a full similarity matrix."""
from __future__ import annotations

import faiss
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from pipelines.grouping import neighbours
from pipelines.grouping.duplicates import duplicate_labels
from pipelines.grouping.neighbours import nearest_of_another_class


def brute(vectors, labels, k):
    similarity = vectors @ vectors.T
    shared = ((labels[:, None, :, None] == labels[None, :, None, :]) & (labels[:, None, :, None] >= 0)).any((2, 3))
    similarity[shared | np.eye(len(vectors), dtype=bool)] = -np.inf
    ids = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(similarity, ids, 1)


def test_equals_the_full_matrix(vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(300)
    ids, cosines = nearest_of_another_class(vectors, labels, 8)
    expected, similarity = brute(vectors, labels, 8)
    np.testing.assert_allclose(cosines, similarity, atol=1e-5)
    assert (ids == expected).mean() > 0.9  # copies tie
    assert not (ids == np.arange(300)[:, None]).any()


def test_the_search_widens_for_a_large_class() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 16)).astype(np.float32)
    vectors[:300] = vectors[0] + 0.01 * vectors[:300]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = duplicate_labels([0] * 300 + list(range(1, 101)), [[]] * 400)
    ids, cosines = nearest_of_another_class(vectors, labels, 8)
    np.testing.assert_allclose(cosines, brute(vectors, labels, 8)[1], atol=1e-5)
    assert (ids[:300] >= 300).all()


def test_missing_neighbours_are_marked() -> None:
    ids, cosines = nearest_of_another_class(np.eye(3, dtype=np.float32), np.array([[0], [0], [-1]], np.int32), 4)
    assert ids.tolist() == [[2, -1, -1, -1], [2, -1, -1, -1], [0, 1, -1, -1]]
    assert cosines[0, 1] == -1


def test_ties_go_to_the_lower_id() -> None:
    vectors = np.tile(np.eye(4, 37, dtype=np.float32), (20, 1))
    ids, _ = nearest_of_another_class(vectors, np.full((80, 0), -1, np.int32), 5)
    for row in range(80):
        same = [other for other in range(row % 4, 80, 4) if other != row]
        assert ids[row].tolist() == same[:5]


@pytest.mark.parametrize("threads", [2, 4])
def test_the_number_of_threads_changes_nothing_and_is_restored(threads: int, vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(700, width=64)
    expected = nearest_of_another_class(vectors, labels, 8)
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(threads)
        with threadpool_limits(threads):
            found = nearest_of_another_class(vectors, labels, 8)
        assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_pieces_of_a_search_are_put_together(monkeypatch: pytest.MonkeyPatch, vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(300)
    whole = nearest_of_another_class(vectors, labels, 8)
    monkeypatch.setattr(neighbours, "CHUNK", 70)
    pieces = nearest_of_another_class(vectors, labels, 8)
    np.testing.assert_allclose(pieces[1], whole[1], atol=1e-5)
    assert (pieces[0] == whole[0]).mean() > 0.99


def test_inverted_lists_reach_their_recall(monkeypatch: pytest.MonkeyPatch, vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(3000, width=32)
    monkeypatch.setattr(neighbours, "EXACT_LIMIT", 1000)
    _, cosines = nearest_of_another_class(vectors, labels, 8)
    assert (cosines >= brute(vectors, labels, 8)[1] - 1e-5).mean() >= 0.75


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(bad: float) -> None:
    vectors = np.eye(4, dtype=np.float32)
    vectors[2, 1] = bad
    with pytest.raises(ValueError, match="1 of 4 embeddings are not finite .the first is row 2"):
        nearest_of_another_class(vectors, np.full((4, 0), -1, np.int32), 2)
