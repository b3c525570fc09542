"""Grouping against GRIT-VLP's queue and chance: `python -m benchmarks.grouping [short] [10k] [100k] [1m]`.

Every method runs in a process of its own on one thread, on the same data. A result is a line of
benchmarks/results/grouping.jsonl as soon as it is there; what is there is not run again (remove the line to do so), so
that an interrupted benchmark goes on with the same command. The bars stand here before the runs that they judge.
Data: benchmarks/grouping_data.py. `short` is synthetic, takes less than a minute and judges nothing.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import psutil
from numba import njit

from benchmarks.grouping_data import real, synthetic
from pipelines.grouping import cell_tasks, partition
from pipelines.grouping.duplicates import duplicate_labels
from pipelines.grouping.neighbours import nearest_of_another_class, one_thread
from pipelines.grouping.quality import bounds, member_cosines, random_groups, useful_cosine

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "grouping.jsonl"
CACHE = REPOSITORY / "data" / "bench-grouping"
SIZE, NEIGHBOURS, QUEUE = 4, 16, 1920
SAMPLES = {"short": 4_000, "10k": 10_000, "100k": 100_000, "1m": 1_000_000}
METHODS = ("random", "grit", "ours", "cells", "ivf", "ray")
CELLS = 4
# What must be reached: ours against GRIT's, ours against the kNN bound.
BETTER = {"10k": 1.25, "100k": 1.45, "1m": 1.6}
OF_BOUND = {"100k": 0.86}
WORST_DECILE, OF_IVF_SECONDS, OF_EMBEDDINGS, OF_ONE_CELL = 2.0, 1.0, {"1m": 3.5}, 0.985


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and duplicate labels of a data set."""
    samples = SAMPLES[name]
    vectors, classes = real(samples, CACHE) if name in ("10k", "100k") else synthetic(samples)
    return vectors, duplicate_labels(classes, [[]] * samples)


def chance(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Random groups."""
    return random_groups(len(vectors), SIZE, 0)


def grit(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """GRIT-VLP (Byun et al. 2022), our restatement: in random queues of QUEUE samples a chain, in which the next is the
    most similar to the last of those not taken yet; groups are cut off the chain. Taken samples are marked, and not
    given a weight of 0, so that none is lost. Here one embedding stands for both of its modalities.
    """
    order = np.random.default_rng(0).permutation(len(vectors))
    chains = []
    for start in range(0, len(order), QUEUE):
        rows = order[start:start + QUEUE]
        chains.append(rows[_chain(vectors[rows] @ vectors[rows].T)])
    chain = np.concatenate(chains)
    assert np.array_equal(np.sort(chain), np.arange(len(vectors))), "a sample is lost"
    return chain[:len(chain) // SIZE * SIZE].reshape(-1, SIZE)


@njit(cache=True)
def _chain(similarity):  # type: ignore[no-untyped-def]
    count = len(similarity)
    taken, chain = np.zeros(count, np.bool_), np.zeros(count, np.int64)
    last = 0
    taken[0] = True
    for place in range(1, count):
        best, best_similarity = -1, -np.inf
        for other in range(count):
            if not taken[other] and similarity[last, other] > best_similarity:
                best, best_similarity = other, similarity[last, other]
        taken[best], chain[place], last = True, best, best
    return chain


def ours(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """All samples as one cell; from 1M on in cells of the default size."""
    if len(vectors) > 250_000:
        return cells(vectors, labels, 250_000)
    return partition.in_one_cell(vectors, labels, SIZE, NEIGHBOURS)[0]


def cells(vectors: np.ndarray, labels: np.ndarray, cell: int = 0) -> np.ndarray:
    """CELLS cells and two rounds of swaps, one after the other in this process."""
    cell_tasks._run = lambda function, tasks, what, progress: [function(*task) for task in tasks]
    with TemporaryDirectory(dir=CACHE) as work:
        mapped = cell_tasks.save_vectors(vectors, Path(work))
        return cell_tasks.partition_in_cells(mapped, labels, SIZE, NEIGHBOURS, cell or -(-len(vectors) // CELLS), 0,
                                             Path(work))[0]


def through_ray(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cells of `ours` at 1M, or CELLS, as Ray tasks on two CPUs."""
    from cluster.connection import connect
    connect(2)
    with TemporaryDirectory(dir=CACHE) as work:
        mapped = cell_tasks.save_vectors(vectors, Path(work))
        return cell_tasks.partition_in_cells(mapped, labels, SIZE, NEIGHBOURS, min(250_000, -(-len(vectors) // CELLS)),
                                             0, Path(work))[0]


class Memory(threading.Thread):
    """The most that this process and its children held at once, in MB; pages that they share count once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        """Look four times a second."""
        while True:
            held = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with suppress(psutil.Error):
                    held += process.memory_full_info().pss
            self.peak = max(self.peak, held / 2**20)
            time.sleep(0.25)


def ivf(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A plain FAISS kNN by inverted lists, nprobe 4: what the seconds are compared with. Groups nothing."""
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], int(4 * len(vectors) ** 0.5),
                               faiss.METRIC_INNER_PRODUCT)
    lists.cp.max_points_per_centroid = 64
    lists.train(vectors)
    lists.add(vectors)
    lists.nprobe = 4
    lists.search(vectors, NEIGHBOURS)
    return np.zeros((0, SIZE), np.int64)


def measure(name: str, method: str) -> dict[str, Any]:
    """Run one method in this process, and judge its groups."""
    run: Callable[[np.ndarray, np.ndarray], np.ndarray] = {
        "random": chance, "grit": grit, "ours": ours, "cells": cells, "ivf": ivf, "ray": through_ray}[method]
    CACHE.mkdir(parents=True, exist_ok=True)
    if method != "ray":
        _compile(run)
    vectors, labels = load(name)
    searching, memory = _time_searches(), Memory()
    memory.start()
    with one_thread():
        start = time.perf_counter()
        groups = run(vectors, labels)
        seconds = time.perf_counter() - start
    result = {"data": name, "method": method, "samples": len(vectors), "width": vectors.shape[1], "seconds": seconds,
              "seconds_without_knn": seconds - sum(searching), "embeddings_mb": vectors.nbytes / 2**20,
              "peak_mb": memory.peak}
    return result | (judge(vectors, labels, groups) if len(groups) else {})


def judge(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Useful cosine against an exact kNN bound (of 2,000 random groups), and the mean of the worst tenth of those."""
    everything = np.ones(groups.shape, np.bool_)
    chosen = groups[np.sort(np.random.default_rng(3).permutation(len(groups))[:2000])]
    bound = exact_bounds(vectors, labels, chosen.ravel()).reshape(chosen.shape).mean(axis=1)
    share = member_cosines(vectors, labels, chosen, np.ones(chosen.shape, np.bool_)).mean(axis=1) / bound
    found, clashes = useful_cosine(vectors, labels, groups, everything)
    classes = [set(row[row >= 0]) for row in labels[groups].reshape(len(groups), -1)]
    with_duplicates = sum(len(row[row >= 0]) > len(distinct) for row, distinct in
                          zip(labels[groups].reshape(len(groups), -1), classes, strict=True))
    return {"useful_cosine": found, "quality": found / float(bound.mean()), "clashes": clashes,
            "worst_decile": float(np.sort(share)[:len(share) // 10].mean()),
            "groups_with_duplicates": with_duplicates / len(groups)}


def exact_bounds(vectors: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The mean cosine of `rows` to their G - 1 nearest of another class, by brute force."""
    cosines, ids = faiss.knn(vectors[rows], vectors, 64, metric=faiss.METRIC_INNER_PRODUCT)
    mine = labels[rows]
    shared = ((mine[:, None, :, None] == labels[ids][:, :, None, :]) & (mine[:, None, :, None] >= 0)).any((2, 3))
    cosines[shared | (ids == rows[:, None])] = -1
    return bounds(-np.sort(-cosines, axis=1), SIZE)


def _compile(run: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 8)).astype(np.float32)
    run(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), duplicate_labels(np.arange(400) // 2, [[]] * 400))


def _time_searches() -> list[float]:
    """The seconds of every nearest-neighbour search from now on."""
    seconds: list[float] = []

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return nearest_of_another_class(*arguments)
        finally:
            seconds.append(time.perf_counter() - start)

    partition.nearest_of_another_class = timed
    return seconds


def bars(found: dict[str, dict[str, Any]], name: str) -> list[tuple[str, float, str, float]]:
    """Each bar of a data set: what it says, the figure, whether it must be at least or at most, the bar."""
    mine, theirs, knn = (found[method] for method in ("ours", "grit", "ivf"))
    judged = [("useful quality, ours / GRIT", mine["quality"] / theirs["quality"], ">=", BETTER[name]),
              ("worst decile, ours / GRIT", mine["worst_decile"] / theirs["worst_decile"], ">=", WORST_DECILE),
              ("seconds without kNN / IVF kNN", mine["seconds_without_knn"] / knn["seconds"], "<=", OF_IVF_SECONDS)]
    if name in OF_BOUND:
        judged.append(("ours / kNN bound", mine["quality"], ">=", OF_BOUND[name]))
    if name in OF_EMBEDDINGS:
        judged.append(("peak memory / embeddings", mine["peak_mb"] / mine["embeddings_mb"], "<=", OF_EMBEDDINGS[name]))
    else:
        judged.append((f"{CELLS} cells / one cell", found["cells"]["quality"] / mine["quality"], ">=", OF_ONE_CELL))
    return judged


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown of one data set."""
    lines = ["| method | quality | worst decile | groups with duplicates | s | s without kNN | peak MB |",
             "|---|---|---|---|---|---|---|"]
    for method, row in found.items():
        figures = [f"{row[key]:.3f}" if key in row else "-" for key in (
            "quality", "worst_decile", "groups_with_duplicates")]
        lines.append(f"| {method} | {' | '.join(figures)} | {row['seconds']:.2f} | {row['seconds_without_knn']:.2f} | "
                     f"{row['peak_mb']:.0f} |")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run the data sets that the command line names (10k and 100k by default); exit 1 where a bar is missed."""
    if words[:1] == ["measure"]:
        print(json.dumps(measure(words[1], words[2])))
        return 0
    missed = 0
    for name in words or ["10k", "100k"]:
        found: dict[str, dict[str, Any]] = {}
        for method in METHODS:
            if method not in (("cells",) if name == "1m" else ("ray",)):
                found[method] = _kept(name, method) or _measured(name, method)
        print(f"\n{name}: {SAMPLES[name]:,} samples of {found['ours']['width']} dimensions, G = {SIZE}\n{table(found)}")
        for what, figure, sign, bar in bars(found, name) if name in BETTER else []:
            met = figure >= bar if sign == ">=" else figure <= bar
            missed += not met
            print(f"{'met' if met else 'NOT MET'}: {what} {figure:.3f} {sign} {bar}")
    return 1 if missed else 0


def _kept(name: str, method: str) -> dict[str, Any] | None:
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return next((line for line in lines if (line["data"], line["method"]) == (name, method)), None)


def _measured(name: str, method: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.grouping", "measure", name, method], cwd=REPOSITORY,
                          env={**os.environ, **dict.fromkeys(THREADS, "1")}, check=True, stdout=subprocess.PIPE,
                          text=True)
    line = done.stdout.splitlines()[-1]
    if name != "short":
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(line + "\n")
    found: dict[str, Any] = json.loads(line)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
