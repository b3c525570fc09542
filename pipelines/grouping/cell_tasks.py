"""Group more samples than one task can hold: cells as Ray tasks, then two rounds of swaps in cells cut anew.

Vectors and labels lie in files that every task maps into memory and takes its rows from. A task is a pure function of
those files and its arguments, so neither the number of CPUs nor a task that is run twice changes the result.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from jaxtyping import Float32, Int32, Int64

from pipelines.grouping.cells import CHUNK, bisect
from pipelines.grouping.neighbours import one_thread, pairs_above
from pipelines.grouping.partition import Groups, Real, check_count, group_cell, replace_padding

ROUNDS = 2
"""Rounds of new cells: after two, hardly a swap is left that the cells' borders hide."""

Task = tuple[Any, ...]

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""


def save_vectors(vectors: Float32[np.ndarray, "N D"], work: Path) -> Float32[np.ndarray, "N D"]:
    """Write the vectors where tasks find them (`work` must be seen by every node); returns them mapped from there."""
    np.save(work / "vectors.npy", vectors)
    return _mapped(work)


def pairs_in_cells(vectors: Float32[np.ndarray, "N D"], cosine: float, cell: int, seed: int, work: Path,
                   progress: Progress | None = None) -> Int64[np.ndarray, "P 2"]:
    """`pairs_above` in the cells of two bisections: a near pair that one of them parts is together in the other."""
    found = [np.zeros((0, 2), np.int64)]
    for number, steps in enumerate((4, 1)):
        tasks: list[Task] = [(work, cosine, rows) for rows in _bisect(vectors, cell, 1, seed + number, steps)]
        found += _run(_pairs_task, tasks, f"duplicates, cells {number + 1} of 2", progress)
    return np.unique(np.concatenate(found), axis=0)


def partition_in_cells(
    vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"], size: int, k: int, cell: int, seed: int,
    work: Path, progress: Progress | None = None,
) -> tuple[Groups, Real, Float32[np.ndarray, "N k"]]:
    """As `partition`, for vectors that `save_vectors` has written; with the nearest cosines that the cells saw.

    Those are of G - 1 neighbours, and at most the true ones. Raises ValueError for N < G.
    """
    samples = len(vectors)
    check_count(samples, size)
    np.save(work / "labels.npy", labels)
    cells = _bisect(vectors, cell, size, seed)
    cells[-1] = np.concatenate([cells[-1], np.arange(samples, samples + -samples % size)])
    nearest = np.full((samples, max(1, size - 1)), -1, np.float32)

    def run(tasks: list[Task], what: str) -> list[Groups]:
        found: list[Groups] = []
        for (_, _, _, members, _), (groups, cosines) in zip(tasks, _run(_cell_task, tasks, what, progress),
                                                            strict=True):
            found.append(groups)
            real = members[members < samples]
            nearest[real] = np.maximum(nearest[real], cosines)
        return found

    groups = np.concatenate(run([(work, size, k, members, None) for members in cells], "grouping, cells"))
    for number in range(1, ROUNDS + 1):
        tasks: list[Task] = []
        # One step only: fully refined cuts come to lie at the same borders again, whatever the seed.
        chosen = _bisect(_sums(vectors, groups), max(1, cell // size), 1, seed + number, steps=1)
        for rows in chosen:
            tasks.append((work, size, k, np.sort(groups[rows].ravel()), groups[rows]))
        groups[np.concatenate(chosen)] = np.concatenate(run(tasks, f"swapping, round {number} of {ROUNDS}, cells"))
    return *replace_padding(vectors, labels, groups), nearest


def _bisect(points: Float32[np.ndarray, "n D"], cell: int, multiple: int, seed: int, steps: int = 4,
            ) -> list[Int64[np.ndarray, " m"]]:
    with one_thread():
        return bisect(points, cell, multiple, seed, steps)


def _sums(vectors: Float32[np.ndarray, "N D"], groups: Groups) -> Float32[np.ndarray, "n D"]:
    """The sum of every group's vectors; padding adds nothing."""
    sums = np.zeros((len(groups), vectors.shape[1]), np.float32)
    for start in range(0, len(groups), CHUNK):
        rows = slice(start, start + CHUNK)
        for members in groups[rows].T:
            real = members < len(vectors)
            sums[rows][real] += vectors[members[real]]
    return sums


def _run(function: Callable[..., Any], tasks: Sequence[Task], what: str, progress: Progress | None) -> list[Any]:
    """The results in the order of the tasks; a task whose worker dies is run again by Ray."""
    remote = ray.remote(num_cpus=1)(function)
    references = [remote.remote(*task) for task in tasks]
    waiting = list(references)
    while waiting:
        _, waiting = ray.wait(waiting)
        if progress is not None:
            progress(what, len(tasks) - len(waiting), len(tasks))
    return list(ray.get(references))


def _pairs_task(work: Path, cosine: float, rows: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "P 2"]:
    return rows[pairs_above(_mapped(work)[rows], cosine)]


def _cell_task(work: Path, size: int, k: int, members: Int64[np.ndarray, " m"], groups: Groups | None,
               ) -> tuple[Groups, Float32[np.ndarray, "r k"]]:
    """Group the members (ascending; beyond the vectors: padding); ids as in the files."""
    every = _mapped(work)
    real = members[members < len(every)]
    padding = ((0, len(members) - len(real)), (0, 0))
    vectors = np.pad(every[real], padding)
    labels = np.pad(np.load(work / "labels.npy", mmap_mode="r")[real], padding, constant_values=-1)
    local = None if groups is None else np.searchsorted(members, groups)
    found, cosines = group_cell(vectors, labels, size, k, len(real), local)
    return members[found], cosines[:, :max(1, size - 1)]


def _mapped(work: Path) -> Float32[np.ndarray, "N D"]:
    vectors: Float32[np.ndarray, "N D"] = np.load(work / "vectors.npy", mmap_mode="r")
    return vectors
