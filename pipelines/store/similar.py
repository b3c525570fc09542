"""Perceptual hashes that differ in a few bits, among millions, without looking at every pair (numba)."""
from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt64
from numba import njit
from numpy import ndarray

NEAR_BITS = 4
"""Hashes of 64 bits that differ in at most so many count as copies."""
_PARTS = NEAR_BITS + 1
_EDGES = [64 * part // _PARTS for part in range(_PARTS + 1)]


def first_similar(hashes: UInt64[ndarray, " N"], start: int = 0) -> Int64[ndarray, " M"]:
    """For every hash from `start` on the first place in `hashes` at which one stands that differs in at most NEAR_BITS
    bits (its own, at last). Pairs before `start` cost nothing.
    """
    codes, first, at = np.unique(hashes, return_index=True, return_inverse=True)
    wanted = np.zeros(len(codes), bool)
    wanted[at[start:]] = True
    smallest = first.astype(np.int64)
    # Of 5 disjoint parts of a hash at least one stays whole where at most 4 bits differ: no pair is missed.
    for low, high in zip(_EDGES, _EDGES[1:], strict=False):
        part = (codes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort((part << np.uint64(1) | ~wanted).astype(np.uint16), kind="stable")  # the wanted ones first
        _look(codes[order], part[order], wanted[order], first, order, smallest)
    return smallest[at[start:]]


@njit(cache=True)
def _look(codes: ndarray, part: ndarray, wanted: ndarray, first: ndarray, order: ndarray, smallest: ndarray) -> None:
    """Compare within each run of equal parts every wanted code with all behind it; keep the smallest places."""
    size = len(codes)
    start = 0
    while start < size:
        end = start + 1
        while end < size and part[end] == part[start]:
            end += 1
        for i in range(start, end):
            if not wanted[i]:
                break
            for j in range(i + 1, end):
                left = codes[i] ^ codes[j]
                bits = 0
                while left and bits <= NEAR_BITS:
                    left &= left - np.uint64(1)
                    bits += 1
                if bits <= NEAR_BITS:
                    mine, other = order[i], order[j]
                    smallest[mine] = min(smallest[mine], first[other])
                    smallest[other] = min(smallest[other], first[mine])
        start = end
