"""Nearest neighbours of another class: FAISS, exact up to EXACT_LIMIT samples, inverted lists beyond."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int32, Int64
from numba import njit
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from pipelines.grouping.pairs import clash

EXACT_LIMIT = 50_000
WIDEST = 1024
CHUNK = 65_536
RECALL = 0.8


def nearest_of_another_class(
    vectors: Float32[np.ndarray, "N D"], labels: Int32[np.ndarray, "N C"], k: int,
) -> tuple[Int64[np.ndarray, "N k"], Float32[np.ndarray, "N k"]]:
    """Ids and cosines of each sample's k nearest samples that share no duplicate label with it.

    Best first, ties to the lower id; -1 (cosine -1) where a sample has fewer than k. The search widens, up to
    WIDEST, for samples whose nearest are their own duplicates. One thread: FAISS's ids differ between thread counts.
    Raises ValueError for vectors that are not finite.
    """
    check_finite(vectors)
    samples = len(vectors)
    ids = np.full((samples, k), -1, np.int64)
    cosines = np.full((samples, k), -1, np.float32)
    limit = min(samples, WIDEST)
    with one_thread():
        index = build_index(vectors)
        rows, width = np.arange(samples), min(limit, k + 4)
        while len(rows):
            for some in _chunks(rows):
                _keep_useful(*_search(index, vectors[some], width), some, labels, ids, cosines)
            rows = rows[ids[rows, -1] < 0] if width < limit else rows[:0]
            width = min(limit, 4 * width)
    return ids, cosines


def pairs_above(vectors: Float32[np.ndarray, "N D"], cosine: float, k: int = 16) -> Int64[np.ndarray, "P 2"]:
    """Pairs of samples of at least this cosine, the lower id first: enough of them to connect all that belong together.

    A sample whose k nearest are all that near is looked at again with more, up to WIDEST. One thread.
    """
    found: list[Int64[np.ndarray, "p 2"]] = []
    limit = min(len(vectors), WIDEST)
    with one_thread():
        index = build_index(vectors)
        rows, width = np.arange(len(vectors)), min(limit, k)
        while len(rows):
            crowded: list[Int64[np.ndarray, " c"]] = []
            for some in _chunks(rows):
                ids, cosines = _search(index, vectors[some], width)
                near = (cosines >= cosine) & (ids >= 0) & (ids != some[:, None])
                pairs = np.stack([np.repeat(some, near.sum(axis=1)), ids[near]], axis=1)
                found.append(np.unique(np.sort(pairs, axis=1), axis=0))
                crowded.append(some[cosines[:, -1] >= cosine])
            rows = np.concatenate(crowded) if width < limit else rows[:0]
            width = min(limit, 4 * width)
    return np.unique(np.concatenate(found), axis=0)


def check_finite(vectors: Float32[np.ndarray, "N D"]) -> None:
    """ValueError for vectors that are not finite."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(vectors)} embeddings are not finite (the first is row {bad[0]}): "
                         "the model that embeds is broken; name another one")


def _chunks(rows: Int64[np.ndarray, " R"]) -> Iterator[Int64[np.ndarray, " r"]]:
    """The rows piece by piece, so that a search copies no more than CHUNK vectors."""
    return (rows[start:start + CHUNK] for start in range(0, len(rows), CHUNK))


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS, OpenMP and FAISS on one thread inside the block."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        faiss.omp_set_num_threads(before)


def build_index(vectors: Float32[np.ndarray, "N D"]) -> Any:
    """A FAISS inner-product index over `vectors`, on the GPU where there is one."""
    samples, width = vectors.shape
    if samples <= EXACT_LIMIT:
        index = _on_gpu(faiss.IndexFlatIP(width))
        index.add(vectors)
        return index
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, int(4 * samples ** 0.5), faiss.METRIC_INNER_PRODUCT)
    lists.cp.max_points_per_centroid = 64
    index = _on_gpu(lists)
    index.train(vectors)
    index.add(vectors)
    _raise_recall(index, vectors)
    return index


def _on_gpu(index: Any) -> Any:
    if faiss.get_num_gpus() == 0:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


def _raise_recall(index: Any, vectors: Float32[np.ndarray, "N D"], queries: int = 256, k: int = 8) -> None:
    """Double the lists that a search visits until recall@k of sampled queries reaches RECALL."""
    sample = vectors[np.linspace(0, len(vectors) - 1, queries).astype(np.int64)]
    exact = faiss.knn(sample, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)[0][:, -1:]
    index.nprobe = 4
    while index.nprobe < index.nlist:
        if (index.search(sample, k)[0] >= exact - 1e-5).mean() >= RECALL:
            return
        index.nprobe = min(index.nlist, 2 * index.nprobe)


def _search(
    index: Any, queries: Float32[np.ndarray, "R D"], width: int,
) -> tuple[Int64[np.ndarray, "R W"], Float32[np.ndarray, "R W"]]:
    """Ids and cosines, best first; cosines equal to five digits (duplicates, summed in another order) by id."""
    cosines, ids = index.search(queries, width)
    order = np.lexsort((ids, -np.round(cosines, 5)), axis=1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(cosines, order, 1)


@njit(cache=True)
def _keep_useful(found, found_cosines, rows, labels, ids, cosines):  # type: ignore[no-untyped-def]
    """Copy the first k of another class into `ids` and `cosines` at `rows`."""
    for r in range(len(rows)):
        row, kept = rows[r], 0
        for c in range(found.shape[1]):
            other = found[r, c]
            if kept == ids.shape[1] or other < 0:
                break
            if other != row and not clash(labels, row, other):
                ids[row, kept] = other
                cosines[row, kept] = found_cosines[r, c]
                kept += 1
