"""Partition samples into disjoint groups of G similar ones: rarest first, then swaps, then no avoidable clash.

A clash is a pair of duplicates (samples that share a label) in one group. `size` is G; vectors have unit norm.
Everything is a pure function of its arguments: ties go to the lower id.
"""
from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from numba import njit

from pipelines.grouping.neighbours import nearest_of_another_class
from pipelines.grouping.pairs import clashes, dot
from pipelines.grouping.swaps import remove_clashes, swap_pass

SWAP_PASSES = 6
MIN_GAIN = 1e-4
LOOKAHEAD = 512

Groups = Int64[np.ndarray, "n G"]
Real = Bool[np.ndarray, "n G"]


def partition(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"], size: int,
              neighbours: Int64[np.ndarray, "N k"], cosines: Float32[np.ndarray, "N k"]) -> tuple[Groups, Real]:
    """Groups of similar samples, each sample in exactly one, and which places are real.

    `neighbours` and `cosines` are those of `nearest_of_another_class`. The last places, where G does not divide N,
    hold copies (`real` is False) of samples near to their group. Raises ValueError for N < G.
    """
    check_count(len(vectors), size)
    padded, padded_labels = pad(vectors, labels, size)
    groups = greedy(padded, padded_labels, neighbours, cosines, size)
    groups = improve(padded, padded_labels, groups, neighbours)
    return replace_padding(vectors, labels, groups)


def in_one_cell(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"], size: int, k: int,
                ) -> tuple[Groups, Real, Float32[np.ndarray, "N k"]]:
    """`partition` by k neighbours each, and their cosines."""
    neighbours, cosines = nearest_of_another_class(vectors, labels, k)
    return *partition(vectors, labels, size, neighbours, cosines), cosines


def group_cell(vectors: Float32[np.ndarray, "M D"], labels: Int32[np.ndarray, "M C"], size: int, k: int, samples: int,
               groups: Groups | None = None) -> tuple[Groups, Float32[np.ndarray, "N k"]]:
    """Groups of M padded vectors, of which the first `samples` are real: new ones, or `groups` improved by swaps.

    Returns with them the cosines of each sample's nearest of another class (`nearest_of_another_class`).
    """
    neighbours, cosines = nearest_of_another_class(vectors[:samples], labels[:samples], k)
    if groups is None:
        groups = greedy(vectors, labels, neighbours, cosines, size)
    return improve(vectors, labels, groups, neighbours), cosines


def random_partition(labels: Int32[np.ndarray, "N C"], size: int, seed: int) -> tuple[Groups, Real]:
    """The baseline arm: random groups, without avoidable clashes; otherwise as `partition`."""
    check_count(len(labels), size)
    vectors = np.zeros((len(labels), 1), np.float32)
    padded, padded_labels = pad(vectors, labels, size)
    groups = np.random.default_rng(seed).permutation(len(padded)).reshape(-1, size)
    remove_clashes(padded, padded_labels, groups)
    return replace_padding(vectors, labels, groups)


def check_count(samples: int, size: int) -> None:
    """ValueError unless there are at least G samples."""
    if samples < size:
        raise ValueError(f"{samples} samples cannot fill one group of groups.size={size}: "
                         "ingest more samples or make the groups smaller")


def pad(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"], size: int,
        ) -> tuple[Float32[np.ndarray, "M D"], Int32[np.ndarray, "M C"]]:
    """Append -N mod G zero vectors without labels, which fit equally badly anywhere."""
    missing = -len(vectors) % size
    return (np.pad(vectors, ((0, missing), (0, 0))),
            np.pad(labels, ((0, missing), (0, 0)), constant_values=-1))


def greedy(vectors: Float32[np.ndarray, "M D"], labels: Int32[np.ndarray, "M C"],
           neighbours: Int64[np.ndarray, "N k"], cosines: Float32[np.ndarray, "N k"], size: int) -> Groups:
    """Samples with the fewest similar others choose first; rounds go on among what is left over."""
    total, (samples, k) = len(vectors), neighbours.shape
    groups = np.full((total // size, size), -1, np.int64)
    taken = np.zeros(total, np.bool_)
    filled, left = 0, np.arange(samples)
    while True:
        rarest = left[np.argsort(cosines[left, min(max(size - 2, 0), k - 1)], kind="stable")]
        before, filled = filled, _round(vectors, labels, neighbours, rarest, groups, taken, filled)
        left = np.flatnonzero(~taken[:samples])
        if filled == before or len(left) <= 8 * size:
            break
        ids, near = nearest_of_another_class(vectors[left], labels[left], k)
        neighbours, cosines = np.full_like(neighbours, -1), np.full_like(cosines, -1)
        neighbours[left], cosines[left] = np.where(ids >= 0, left[ids], -1), near
    rarest = left[np.argsort(cosines[left, min(max(size - 2, 0), k - 1)], kind="stable")]
    _fill(vectors, labels, np.concatenate([rarest, np.arange(samples, total)]), groups, filled)
    return groups


def improve(vectors: Float32[np.ndarray, "M D"], labels: Int32[np.ndarray, "M C"], groups: Groups,
            neighbours: Int64[np.ndarray, "N k"]) -> Groups:
    """Swap samples between groups while the sum of in-group cosines rises; clashes only ever go down."""
    groups = groups.copy()
    for _ in range(2):
        dirty = np.ones(len(groups), np.bool_)
        for _ in range(SWAP_PASSES):
            gain, dirty = swap_pass(vectors, labels, neighbours, groups, dirty)
            if gain < MIN_GAIN * len(groups):
                break
        if remove_clashes(vectors, labels, groups) == 0:
            break
    return groups


def replace_padding(vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"],
                    groups: Groups) -> tuple[Groups, Real]:
    """Put a copy of the most similar sample of another class in every padding place; members sorted, copies last."""
    groups = np.sort(groups, axis=1)
    real = groups < len(vectors)
    for group in np.flatnonzero(~real.all(axis=1)):
        for place in np.flatnonzero(~real[group]):
            members = groups[group, :place]
            similarity = vectors @ vectors[members].sum(axis=0, dtype=np.float32)
            similarity[members] = -np.inf
            groups[group, place] = _first_without_clash(labels, np.argsort(-similarity, kind="stable"), members)
    return groups, real


def _first_without_clash(labels: Int32[np.ndarray, "N C"], candidates: Int64[np.ndarray, " N"],
                         members: Int64[np.ndarray, " m"]) -> int:
    free = (c for c in candidates[:len(candidates) - len(members)] if not clashes(labels, c, members, -1))
    return int(next(free, candidates[0]))


@njit(cache=True)
def _round(vectors, labels, neighbours, order, groups, taken, filled):  # type: ignore[no-untyped-def]
    """One round of seeds in `order`: each takes from its members' neighbours whoever is nearest to the group.

    A group that cannot be filled gives its members back. Returns how many rows of `groups` are filled.
    """
    size = groups.shape[1]
    members = np.full(size, -1, np.int64)
    for seed in order:
        if taken[seed]:
            continue
        members[:] = -1
        members[0], taken[seed] = seed, True
        centre, count = vectors[seed].copy(), 1
        while count < size:
            best, best_similarity = -1, -np.inf
            for member in members[:count]:
                for other in neighbours[member]:
                    if other < 0:
                        break
                    if taken[other] or clashes(labels, other, members, -1) > 0:
                        continue
                    similarity = dot(vectors[other], centre)
                    if similarity > best_similarity or (similarity == best_similarity and other < best):
                        best, best_similarity = other, similarity
            if best < 0:
                break
            members[count], taken[best] = best, True
            centre += vectors[best]
            count += 1
        if count == size:
            groups[filled] = members
            filled += 1
        else:
            taken[members[:count]] = False
    return filled


@njit(cache=True)
def _fill(vectors, labels, left, groups, filled):  # type: ignore[no-untyped-def]
    """Group all of `left`: each seed takes, among the next LOOKAHEAD, the fewest clashes, then the most similar."""
    size, count = groups.shape[1], len(left)
    after = np.arange(1, count + 1)
    head = 0
    for group in groups[filled:]:
        group[0] = left[head]
        head = after[head]
        centre = vectors[group[0]].copy()
        for place in range(1, size):
            best_before, best, fewest, best_similarity = -1, head, size, -np.inf
            before, here = -1, head
            for _ in range(LOOKAHEAD):
                if here >= count:
                    break
                clashing = clashes(labels, left[here], group[:place], -1)
                similarity = dot(vectors[left[here]], centre)
                if clashing < fewest or (clashing == fewest and similarity > best_similarity):
                    best_before, best, fewest, best_similarity = before, here, clashing, similarity
                before, here = here, after[here]
            group[place] = left[best]
            centre += vectors[left[best]]
            if best_before < 0:
                head = after[best]
            else:
                after[best_before] = after[best]
