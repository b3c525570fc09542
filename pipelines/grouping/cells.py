"""Cut vectors into cells of similar ones: balanced bisection, so that a task groups a part that fits its memory."""
from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64

SAMPLE = 16_384
CHUNK = 65_536


def bisect(points: Float32[np.ndarray, "n D"], cell: int, multiple: int, seed: int, steps: int = 4,
           ) -> list[Int64[np.ndarray, " m"]]:
    """Row numbers of `points`, ascending, in cells of at most `cell` rows and near equal size.

    Every cell but the last holds a multiple of `multiple` rows, and `cell` is at least that. Each cut is across the
    line between the means of two halves (`steps` of 2-means with equal halves, on a sample, from two random rows):
    more steps part fewer neighbours, fewer steps cut elsewhere for every seed. Call it with BLAS on one thread for the
    same cells everywhere.
    """
    cell -= cell % multiple
    cells: list[Int64[np.ndarray, " m"]] = []
    open_ = [(np.arange(len(points)), 0)]
    while open_:
        rows, number = open_.pop()
        count = -(-len(rows) // cell)
        if count == 1:
            cells.append(np.sort(rows))
            continue
        left = round(len(rows) * (count // 2) / count / multiple) * multiple
        # The rounding must leave neither half more than its cells can hold.
        left = min(max(left, len(rows) - (count - count // 2) * cell), count // 2 * cell)
        left = -(-left // multiple) * multiple
        order = np.argsort(_along(points, rows, [seed, number], steps), kind="stable")
        # The half that may hold the odd rest comes last.
        open_ += [(rows[order[left:]], 2 * number + 2), (rows[order[:left]], 2 * number + 1)]
    return cells


def _along(points: Float32[np.ndarray, "n D"], rows: Int64[np.ndarray, " m"], seed: list[int],
           steps: int) -> Float32[np.ndarray, " m"]:
    """Where `rows` lie along the direction that tells two equal halves of them apart best."""
    rng = np.random.default_rng(seed)
    sample = points[np.sort(rng.choice(rows, min(SAMPLE, len(rows)), replace=False))]
    direction = sample[rng.integers(len(sample))] - sample[rng.integers(len(sample))]
    for _ in range(steps):
        order = np.argsort(sample @ direction, kind="stable")
        half = len(order) // 2
        direction = sample[order[half:]].mean(axis=0) - sample[order[:half]].mean(axis=0)
    return np.concatenate([points[rows[start:start + CHUNK]] @ direction for start in range(0, len(rows), CHUNK)])
