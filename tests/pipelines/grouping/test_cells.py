"""Cells: an exact cover, near to the result without them, the same whatever happens to the tasks."""
from __future__ import annotations

import os
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.grouping import cell_tasks
from pipelines.grouping.cells import bisect
from pipelines.grouping.duplicates import duplicate_labels, unite
from pipelines.grouping.neighbours import pairs_above
from pipelines.grouping.partition import in_one_cell
from pipelines.grouping.quality import useful_cosine


def here(function, tasks, what, progress):
    """Run the tasks in this process."""
    return [function(*task) for task in tasks]


def in_cells(vectors, labels, size, cell, work: Path, seed=0):
    work.mkdir(exist_ok=True)
    return cell_tasks.partition_in_cells(cell_tasks.save_vectors(vectors, work), labels, size, 16, cell, seed, work)


@settings(deadline=None)
@given(rows=st.integers(1, 400), size=st.integers(1, 7), cells=st.integers(1, 9), seed=st.integers(0, 9),
       equal=st.booleans())
def test_cells_are_balanced_and_hold_every_row_once(rows, size, cells, seed, equal) -> None:
    points = np.ones((rows, 4), np.float32) if equal else np.random.default_rng(seed).random((rows, 4), np.float32)
    cell = max(size, -(-rows // cells))
    found = bisect(points, cell, size, seed)
    assert sorted(np.concatenate(found).tolist()) == list(range(rows))
    assert all(len(rows) <= cell and len(rows) % size == 0 for rows in found[:-1]) and 0 < len(found[-1]) <= cell
    assert all(a < b for rows in found for a, b in pairwise(rows.tolist()))
    assert max(map(len, found)) - min(map(len, found)) <= 2 * size * len(found).bit_length()


def test_a_cut_parts_what_lies_apart_and_the_seed_moves_it() -> None:
    rng = np.random.default_rng(0)
    points = np.repeat(np.eye(2, 8, dtype=np.float32), 500, axis=0) + 0.1 * rng.standard_normal((1000, 8), np.float32)
    assert {tuple(np.unique(rows // 500)) for rows in bisect(points, 500, 4, 0)} == {(0,), (1,)}
    shapeless = rng.standard_normal((1000, 8), np.float32)
    first, again, other = (np.concatenate(bisect(shapeless, 250, 4, seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(40, 160), size=st.integers(2, 5), duplicates=st.sampled_from([0.0, 0.3, 1.0]),
       seed=st.integers(0, 99))
def test_every_sample_is_in_exactly_one_group(vectors_and_labels, tmp_path_factory, samples, size, duplicates,
                                              seed) -> None:
    vectors, labels = vectors_and_labels(samples, duplicates=duplicates, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell_tasks, "_run", here)
        groups, real, cosines = in_cells(vectors, labels, size, 40, tmp_path_factory.mktemp("work"), seed)
    assert groups.shape == (-(-samples // size), size)
    assert sorted(groups[real].tolist()) == list(range(samples))
    assert all(len(set(members.tolist())) == size for members in groups)
    true = in_one_cell(vectors, labels, size, 16)[2][:, :size - 1]
    assert (cosines <= true + 1e-5).all()


def test_swaps_in_cells_cut_anew_come_near_to_one_cell(vectors_and_labels, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """The clusters here lie without any order, the hardest to cut: real texts lose less (docs/grouping.md)."""
    monkeypatch.setattr(cell_tasks, "_run", here)
    vectors, labels = vectors_and_labels(4001, width=24)
    whole = useful_cosine(vectors, labels, *in_one_cell(vectors, labels, 4, 16)[:2])[0]
    found = {}
    for rounds in (0, 1, 2):
        monkeypatch.setattr(cell_tasks, "ROUNDS", rounds)
        groups, real, _ = in_cells(vectors, labels, 4, 2048, tmp_path / str(rounds))
        found[rounds], clashes = useful_cosine(vectors, labels, groups, real)
        assert clashes == 0
    assert found[0] < found[1] < found[2]
    assert found[2] > 0.96 * whole


def test_a_killed_task_and_the_number_of_cpus_change_nothing(ray_local: ModuleType, vectors_and_labels, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = vectors_and_labels(6001, width=48)
    killed: list[int] = []
    ended = threading.Event()

    def kill_one() -> None:
        ours = psutil.Process()
        while not killed and not ended.is_set():
            for process in ours.children(recursive=True):
                try:
                    if "_cell_task" in " ".join(process.cmdline()) and not killed:
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                except (psutil.Error, ProcessLookupError):
                    continue
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    seen: list[tuple[str, int, int]] = []
    (tmp_path / "ray").mkdir()
    mapped = cell_tasks.save_vectors(vectors, tmp_path / "ray")
    try:
        through_ray = cell_tasks.partition_in_cells(mapped, labels, 4, 16, 1600, 0, tmp_path / "ray",
                                                    lambda *report: seen.append(report))
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 1
    assert seen[-1] == ("swapping, round 2 of 2, cells", 4, 4)
    monkeypatch.setattr(cell_tasks, "_run", here)
    one_by_one = in_cells(vectors, labels, 4, 1600, tmp_path / "here")
    assert all(np.array_equal(a, b) for a, b in zip(through_ray, one_by_one, strict=True))


def test_near_pairs_in_cells_unite_what_all_pairs_unite(vectors_and_labels, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_tasks, "_run", here)
    vectors, _ = vectors_and_labels(900, width=16, duplicates=0.5)
    mapped = cell_tasks.save_vectors(vectors, tmp_path)
    near = vectors @ vectors.T >= 0.98
    everything = unite(np.arange(900), np.argwhere(near))
    assert np.array_equal(unite(np.arange(900), pairs_above(vectors, 0.98)), everything)
    found = unite(np.arange(900), cell_tasks.pairs_in_cells(mapped, 0.98, 300, 0, tmp_path))
    assert (found == everything).mean() > 0.99
    assert (duplicate_labels(found, [[]] * 900) >= 0).any()
