"""The partition against its oracles: exact cover, recomputed gains, exhaustive optima, unavoidable clashes."""
from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.grouping.duplicates import duplicate_labels
from pipelines.grouping.neighbours import nearest_of_another_class
from pipelines.grouping.partition import greedy, improve, pad, partition, random_partition, replace_padding
from pipelines.grouping.quality import useful_cosine
from pipelines.grouping.swaps import clash_change, remove_clashes, swap_gain, swap_pass


def group(vectors, labels, size, k=16):
    return partition(vectors, labels, size, *nearest_of_another_class(vectors, labels, max(k, 2 * size)))


def objective(vectors, labels, groups):
    """Sum of in-group cosines less 4 G a clash, from the definition."""
    total = 0.0
    for members in groups:
        for i, j in combinations(members.tolist(), 2):
            shared = set(labels[i].tolist()) & set(labels[j].tolist()) - {-1}
            total += float(vectors[i].astype(np.float64) @ vectors[j]) - 4 * groups.shape[1] * bool(shared)
    return total


def classes_of(sizes):
    classes = np.repeat(np.arange(len(sizes)), sizes)
    return classes, duplicate_labels(classes, [[]] * len(classes))


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 70), size=st.integers(1, 9), duplicates=st.sampled_from([0.0, 0.3, 1.0]),
       seed=st.integers(0, 99), method=st.sampled_from(["similar", "random"]))
def test_every_sample_is_in_exactly_one_group(vectors_and_labels, samples, size, duplicates, seed, method) -> None:
    vectors, labels = vectors_and_labels(samples, duplicates=duplicates, seed=seed)
    if samples < size:
        with pytest.raises(ValueError, match=f"{samples} samples cannot fill one group of groups.size={size}"):
            group(vectors, labels, size)
        return
    groups, real = (group(vectors, labels, size) if method == "similar" else random_partition(labels, size, seed))
    assert groups.shape == real.shape == (-(-samples // size), size)
    assert sorted(groups[real].tolist()) == list(range(samples))
    assert (~real).sum() == -samples % size
    for members in groups:
        assert len(set(members.tolist())) == size


def test_identical_vectors_are_all_placed(vectors_and_labels) -> None:
    vectors = np.tile(np.eye(1, 8, dtype=np.float32), (41, 1))
    groups, real = group(vectors, np.full((41, 0), -1, np.int32), 4)
    assert sorted(groups[real].tolist()) == list(range(41))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(2, 5))
def test_a_swaps_gain_is_the_recomputed_objective(vectors_and_labels, seed, size) -> None:
    vectors, labels = vectors_and_labels(6 * size, duplicates=0.5, seed=seed)
    rng = np.random.default_rng(seed)
    groups = rng.permutation(6 * size).reshape(-1, size)
    sums = vectors[groups].sum(axis=1)
    m, j = groups[0, rng.integers(size)], groups[1, rng.integers(size)]
    gain = swap_gain(vectors, labels, groups, sums[0] - sums[1], 0, m, 1, j)
    swapped = groups.copy()
    swapped[groups == m], swapped[groups == j] = j, m
    assert gain == pytest.approx(objective(vectors, labels, swapped) - objective(vectors, labels, groups), abs=1e-4)
    before = useful_cosine(vectors, labels, groups, groups >= 0)[1]
    after = useful_cosine(vectors, labels, swapped, groups >= 0)[1]
    assert clash_change(labels, groups, 0, m, 1, j) == after - before


def test_a_passes_gain_is_the_recomputed_objective(vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(200)
    ids, _ = nearest_of_another_class(vectors, labels, 16)
    groups = np.random.default_rng(0).permutation(200).reshape(-1, 4)
    before = objective(vectors, labels, groups)
    gain, changed = swap_pass(vectors, labels, ids, groups, np.ones(50, bool))
    assert gain == pytest.approx(objective(vectors, labels, groups) - before, abs=1e-2)
    assert gain > 50 and changed.sum() > 40
    assert sorted(groups.ravel().tolist()) == list(range(200))


def best_partition(vectors, labels, size):
    """The optimum by dynamic programming over subsets."""
    @cache
    def best(left: tuple[int, ...]) -> float:
        if not left:
            return 0.0
        return max(objective(vectors, labels, np.array([[left[0], *others]]))
                   + best(tuple(i for i in left[1:] if i not in others)) for others in combinations(left[1:], size - 1))
    return best(tuple(range(len(vectors))))


@pytest.mark.parametrize(("samples", "size"), [(8, 2), (8, 4), (10, 2), (12, 3), (12, 4)])
def test_near_the_optimum_of_small_problems(samples: int, size: int, vectors_and_labels) -> None:
    ratios = []
    for seed in range(12):
        vectors, labels = vectors_and_labels(samples, width=4, duplicates=0.1, seed=seed)
        vectors = np.abs(vectors)  # cosines above 0, so that a ratio means something
        groups, _ = group(vectors, labels, size)
        ratios.append(objective(vectors, labels, groups) / best_partition(vectors, labels, size))
    assert max(ratios) <= 1 + 1e-5
    assert min(ratios) >= 0.93 and np.mean(ratios) >= 0.985


def test_far_better_than_random_and_below_the_bound(vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(2000, width=32)
    _, cosines = nearest_of_another_class(vectors, labels, 16)
    found = useful_cosine(vectors, labels, *group(vectors, labels, 4))[0]
    random = useful_cosine(vectors, labels, *random_partition(labels, 4, 0))[0]
    bound = cosines[:, :3].mean()
    assert random < 0.1 < 0.84 * bound <= found <= bound


def test_swaps_improve_on_the_greedy_start(vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(2000, width=32)
    ids, cosines = nearest_of_another_class(vectors, labels, 16)
    padded, padded_labels = pad(vectors, labels, 4)
    start = greedy(padded, padded_labels, ids, cosines, 4)
    end = improve(padded, padded_labels, start, ids)
    assert objective(vectors, labels, end) > 1.02 * objective(vectors, labels, start)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=12), size=st.integers(2, 4), seed=st.integers(0, 99),
       start=st.sampled_from(["similar", "random"]))
def test_no_avoidable_clash(sizes, size, seed, start) -> None:
    """Of n members of a class over g groups at least so many pairs meet as when they are spread evenly."""
    classes, labels = classes_of(sizes)
    count = len(classes) // size * size
    labels, classes = labels[:count], classes[:count]
    if count == 0:
        return
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((int(classes.max()) + 1, 8))[classes] + 0.01 * rng.standard_normal((count, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    groups, real = group(vectors, labels, size) if start == "similar" else random_partition(labels, size, seed)
    fewest = 0
    for members in np.bincount(classes):
        each, more = divmod(int(members), len(groups))
        fewest += more * (each + 1) * each // 2 + (len(groups) - more) * each * (each - 1) // 2
    assert useful_cosine(vectors, labels, groups, real)[1] == fewest


def test_clashes_are_removed_from_a_bad_start() -> None:
    classes, labels = classes_of([4] * 10)
    groups = np.arange(40).reshape(10, 4)
    assert remove_clashes(np.ones((40, 1), np.float32), labels, groups) > 0
    assert all(len(set(classes[members])) == 4 for members in groups)


def test_padding_copies_are_near_and_of_another_class() -> None:
    angles = np.radians([0, 1, 2, 40, 50, 90, 91])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([[0], [0], [-1], [-1], [-1], [-1], [-1]], np.int32)  # 0 and 1 are duplicates
    groups, real = replace_padding(vectors, labels, np.array([[7, 0, 8], [1, 2, 3], [4, 5, 6]]))
    assert groups.tolist() == [[0, 2, 3], [1, 2, 3], [4, 5, 6]]
    assert real.tolist() == [[True, False, False], [True] * 3, [True] * 3]


def test_padding_takes_a_duplicate_where_there_is_nothing_else() -> None:
    groups, real = replace_padding(np.ones((3, 1), np.float32), np.zeros((3, 1), np.int32), np.array([[0, 1], [2, 3]]))
    assert groups.tolist() == [[0, 1], [2, 0]] and real.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("method", ["similar", "random"])
def test_the_same_result_every_time(method: str, vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(1001, width=24)
    first, second = ((group(vectors, labels, 4) if method == "similar" else random_partition(labels, 4, 3))
                     for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_more_samples_than_one_look_ahead_in_few_classes() -> None:
    """Everything clashes: no round fills a group, and the fill still spreads two classes over all groups."""
    classes, labels = classes_of([1500, 1500])
    vectors = np.eye(2, 8, dtype=np.float32)[classes]
    groups, real = group(vectors, labels, 2)
    assert (classes[groups].sum(axis=1) == 1).all() and real.all()
