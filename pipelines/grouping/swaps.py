"""Local search: swaps of two samples between groups (compiled; `groups` changes in place).

The aim is the sum of in-group cosines minus 4 G for every clash: no swap's cosines outweigh one clash.
"""
from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from numba import njit

from pipelines.grouping.pairs import clashes, dot

MAX_LOOKS = 2_000_000_000


@njit(cache=True)
def swap_pass(
    vectors: Float32[np.ndarray, "M D"], labels: Int32[np.ndarray, "M C"], neighbours: Int64[np.ndarray, "N k"],
    groups: Int64[np.ndarray, "n G"], dirty: Bool[np.ndarray, " n"],
) -> tuple[float, Bool[np.ndarray, " n"]]:
    """One pass over the samples of the dirty groups; each makes its best swap that gains.

    For sample i of group A and its neighbour j of group B: j comes to A for one of A's others, or i goes to B
    for one of B's others. Returns the gain in all, and which groups changed.
    """
    group_of, sums = _membership(vectors, groups)
    changed, total = np.zeros(len(groups), np.bool_), 0.0
    for i in range(len(neighbours)):
        a = group_of[i]
        if not (dirty[a] or changed[a]):
            continue
        best, best_out, best_in = 1e-6, -1, -1
        for j in neighbours[i]:
            if j < 0:
                break
            b = group_of[j]
            if a == b:
                continue
            toward = sums[a] - sums[b]
            for m in groups[a]:
                if m != i:
                    gain = swap_gain(vectors, labels, groups, toward, a, m, b, j)
                    if gain > best:
                        best, best_out, best_in = gain, m, j
            for m in groups[b]:
                if m != j:
                    gain = swap_gain(vectors, labels, groups, toward, a, i, b, m)
                    if gain > best:
                        best, best_out, best_in = gain, i, m
        if best_out >= 0:
            b = group_of[best_in]
            _swap(vectors, groups, group_of, sums, best_out, best_in)
            changed[a], changed[b] = True, True
            total += best
    return total, changed


@njit(cache=True)
def remove_clashes(vectors: Float32[np.ndarray, "M D"], labels: Int32[np.ndarray, "M C"],
                   groups: Int64[np.ndarray, "n G"]) -> int:
    """Swap every clashing sample for whoever, in any group, lowers the clashes most (then gains most); the swaps made.

    With disjoint classes this ends at the fewest clashes that their sizes allow. After MAX_LOOKS looked-at
    pairs (a store of few classes) it stops.
    """
    group_of, sums = _membership(vectors, groups)
    swaps, looks, going = 0, 0, labels.shape[1] > 0
    while going:
        going = False
        for a in range(len(groups)):
            for place in range(groups.shape[1]):
                m = groups[a, place]
                if clashes(labels, m, groups[a], -1) == 0 or looks > MAX_LOOKS:
                    continue
                looks += len(vectors)
                j = _best_stranger(vectors, labels, groups, group_of, sums, a, m)
                if j >= 0:
                    _swap(vectors, groups, group_of, sums, m, j)
                    swaps += 1
                    going = True
    return swaps


@njit(cache=True)
def swap_gain(vectors, labels, groups, toward, a, m, b, j):  # type: ignore[no-untyped-def]
    """What swapping m of group a with j of group b gains; `toward` is the sum of a's vectors minus that of b's.

    The cosines gain (x_j - x_m) . toward + |x_j - x_m|^2.
    """
    difference = vectors[j] - vectors[m]
    gain = dot(difference, toward) + dot(difference, difference)
    return gain - 4 * groups.shape[1] * clash_change(labels, groups, a, m, b, j)


@njit(cache=True)
def clash_change(labels, groups, a, m, b, j):  # type: ignore[no-untyped-def]
    """How many clashes more there are when m of group a and j of group b change places."""
    if labels.shape[1] == 0:
        return 0
    return (clashes(labels, j, groups[a], m) + clashes(labels, m, groups[b], j)
            - clashes(labels, m, groups[a], -1) - clashes(labels, j, groups[b], -1))


@njit(cache=True)
def _best_stranger(vectors, labels, groups, group_of, sums, a, m):  # type: ignore[no-untyped-def]
    best, fewest, best_gain = -1, -1, -np.inf
    for j in range(len(vectors)):
        b = group_of[j]
        if b == a:
            continue
        change = clash_change(labels, groups, a, m, b, j)
        if change > fewest:
            continue
        gain = swap_gain(vectors, labels, groups, sums[a] - sums[b], a, m, b, j)
        if change < fewest or gain > best_gain:
            best, fewest, best_gain = j, change, gain
    return best


@njit(cache=True)
def _membership(vectors, groups):  # type: ignore[no-untyped-def]
    """The group of every sample, and the sum of every group's vectors."""
    group_of = np.empty(len(vectors), np.int64)
    sums = np.zeros((len(groups), vectors.shape[1]), vectors.dtype)
    for g in range(len(groups)):
        _add_up(vectors, groups, sums, g)
        for sample in groups[g]:
            group_of[sample] = g
    return group_of, sums


@njit(cache=True)
def _add_up(vectors, groups, sums, g):  # type: ignore[no-untyped-def]
    sums[g] = 0
    for sample in groups[g]:
        sums[g] += vectors[sample]


@njit(cache=True)
def _swap(vectors, groups, group_of, sums, m, j):  # type: ignore[no-untyped-def]
    """Let m and j change groups; sums are added up anew, so that rounding does not pile up."""
    a, b = group_of[m], group_of[j]
    for place in range(groups.shape[1]):
        if groups[a, place] == m:
            groups[a, place] = j
        if groups[b, place] == j:
            groups[b, place] = m
    group_of[m], group_of[j] = b, a
    _add_up(vectors, groups, sums, a)
    _add_up(vectors, groups, sums, b)
