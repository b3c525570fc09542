"""The compiled inner loops that grouping shares: clashes of duplicates and similarities."""
from __future__ import annotations

from numba import njit


@njit(cache=True)
def clash(labels, i, j):  # type: ignore[no-untyped-def]
    """Whether samples i and j share a duplicate label (rows of `labels` are -1 padded on the right)."""
    for a in range(labels.shape[1]):
        if labels[i, a] < 0:
            return False
        for b in range(labels.shape[1]):
            if labels[j, b] < 0:
                break
            if labels[i, a] == labels[j, b]:
                return True
    return False


@njit(cache=True)
def clashes(labels, i, members, skip):  # type: ignore[no-untyped-def]
    """How many of `members` clash with i; -1 (an empty place), i itself and `skip` do not count."""
    count = 0
    if labels.shape[1] == 0 or labels[i, 0] < 0:
        return count
    for other in members:
        if other >= 0 and other != i and other != skip and clash(labels, i, other):
            count += 1
    return count


@njit(cache=True, fastmath={"reassoc", "contract"})
def dot(x, y):  # type: ignore[no-untyped-def]
    """Inner product of two vectors."""
    total = x[0] * y[0]
    for d in range(1, len(x)):
        total += x[d] * y[d]
    return total
