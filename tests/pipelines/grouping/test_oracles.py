"""The partition against what mathematics says of it: exact matchings, subset programming, bounds, and determinism."""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import networkx
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.grouping.partition import in_one_cell

REPOSITORY = Path(__file__).resolve().parents[3]


def weights(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What a pair in a group is worth: its cosine; duplicates are worth nothing."""
    shared = ((labels[:, None, :, None] == labels[None, :, None, :]) & (labels[:, None, :, None] >= 0)).any((2, 3))
    return np.where(shared, 0.0, vectors.astype(np.float64) @ vectors.T)


def worth(weight: np.ndarray, groups: np.ndarray) -> float:
    return sum(weight[a, b] for members in groups for a, b in combinations(members.tolist(), 2))


def positive(vectors_and_labels, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with cosines above 0, so that a ratio of sums means something."""
    vectors, labels = vectors_and_labels(samples, width=6, duplicates=0.1, seed=seed)
    return np.abs(vectors), labels


def test_pairs_against_the_exact_matching(vectors_and_labels) -> None:
    ratios = []
    for seed in range(6):
        vectors, labels = positive(vectors_and_labels, 80, seed)
        weight = weights(vectors, labels)
        graph = networkx.Graph()
        graph.add_weighted_edges_from((a, b, weight[a, b]) for a, b in combinations(range(80), 2))
        best = sum(weight[a, b] for a, b in networkx.max_weight_matching(graph, maxcardinality=True))
        ratios.append(worth(weight, in_one_cell(vectors, labels, 2, 16)[0]) / best)
    assert max(ratios) <= 1 + 1e-6
    assert min(ratios) >= 0.97


def optimum(weight: np.ndarray, size: int) -> float:
    """Dynamic programming over subsets, as bits: the lowest member left takes its mates."""
    count = len(weight)

    @cache
    def best(left: int) -> float:
        members = [i for i in range(count) if left >> i & 1]
        if not members:
            return 0.0
        return max(worth(weight, np.array([[members[0], *mates]]))
                   + best(left & ~(1 << members[0]) & ~sum(1 << i for i in mates))
                   for mates in combinations(members[1:], size - 1))
    return best((1 << count) - 1)


@pytest.mark.parametrize(("samples", "size"), [(12, 4), (14, 2), (15, 5), (16, 8)])
def test_against_the_optimum_over_all_subsets(samples: int, size: int, vectors_and_labels) -> None:
    ratios = []
    for seed in range(5):
        vectors, labels = positive(vectors_and_labels, samples, seed)
        weight = weights(vectors, labels)
        ratios.append(worth(weight, in_one_cell(vectors, labels, size, 16)[0]) / optimum(weight, size))
    assert max(ratios) <= 1 + 1e-6
    assert min(ratios) >= 0.93 and np.mean(ratios) >= 0.98


@settings(max_examples=10, deadline=None)
@given(size=st.integers(2, 5), count=st.integers(3, 9), seed=st.integers(0, 99))
def test_no_groups_pass_the_degree_bound_nor_that_the_nearest(vectors_and_labels, size, count, seed) -> None:
    """Groups are a graph in which everybody has G - 1 mates: the best such graph, relaxed to fractions, bounds them."""
    samples = size * count
    vectors, labels = positive(vectors_and_labels, samples, seed)
    weight = weights(vectors, labels)
    pairs = np.array(list(combinations(range(samples), 2)))
    degree = scipy.sparse.csr_array((np.ones(2 * len(pairs)), (pairs.T.ravel(), np.tile(np.arange(len(pairs)), 2))))
    relaxed = -scipy.optimize.linprog(-weight[pairs[:, 0], pairs[:, 1]], A_eq=degree, b_eq=np.full(samples, size - 1),
                                      bounds=(0, 1)).fun
    groups, real, cosines = in_one_cell(vectors, labels, size, 16)
    nearest = np.maximum(cosines[:, :size - 1], 0).sum() / 2
    assert real.all()
    assert worth(weight, groups) <= relaxed + 1e-4 and relaxed <= nearest + 1e-3


def test_order_of_the_input_changes_nothing_once_it_is_sorted(vectors_and_labels) -> None:
    """Ids decide: whoever comes in another order is sorted by sample id before (`Samples.read`)."""
    vectors, labels = vectors_and_labels(700, duplicates=0.2)
    names = np.array([f"sample/{i:04d}" for i in range(700)])
    sets = []
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(700)
        back = np.argsort(names[order])
        groups, _, _ = in_one_cell(vectors[order][back], labels[order][back], 4, 16)
        sets.append(groups)
    assert np.array_equal(*sets)


SCRIPT = """
import hashlib, sys
import numpy as np
from pipelines.grouping import cell_tasks
from pipelines.grouping.partition import in_one_cell
from pathlib import Path
rng = np.random.default_rng(0)
vectors = rng.standard_normal((3000, 48)).astype(np.float32)
vectors = np.concatenate([vectors, vectors[:300]]) / 7
labels = np.concatenate([np.arange(3000), np.arange(300)]).astype(np.int32)[:, None]
cell_tasks._run = lambda function, tasks, what, progress: [function(*task) for task in tasks]
work = Path(sys.argv[1])
mapped = cell_tasks.save_vectors(vectors, work)
found = [*in_one_cell(vectors, labels, 4, 16), *cell_tasks.partition_in_cells(mapped, labels, 4, 16, 1000, 0, work)]
print(hashlib.sha256(b"".join(array.tobytes() for array in found)).hexdigest())
"""


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    hashes = set()
    for threads in ("1", "2", "4"):
        (tmp_path / threads).mkdir()
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / threads)], cwd=REPOSITORY, text=True,
                              env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                                                                  "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), threads)},
                              capture_output=True, check=True, timeout=120)
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1 and len(hashes.pop()) == len(hashlib.sha256().hexdigest())
