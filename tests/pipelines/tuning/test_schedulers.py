"""Early stopping counts our own steps, and a later launch decides as one that was never interrupted."""
from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.tuning.schedulers import Told, scheduler
from tests.pipelines.tuning.points import sweep_config, trial

METRIC = "retrieval/mean_r5"
RUNGS, TOTAL, TRIALS = (2, 4, 8), 16, 24


def settings(kind: str) -> Any:
    return sweep_config({"train.lr": {"choice": [0.1]}}, f"tune.scheduler={kind}", "tune.reduction=2").tune


def arrivals() -> list[tuple[str, int, float]]:
    """(trial, step, value) of trials that train in a random interleaving."""
    rng = random.Random(7)
    level = {f"trial-{n:04d}": rng.random() for n in range(TRIALS)}
    reports = [(name, step) for name in level for step in range(1, TOTAL)]
    order = {name: rng.random() for name in level}
    reports.sort(key=lambda report: (report[1] + 6 * order[report[0]]))
    return [(name, step, level[name] + 0.3 * rng.random() + step / 50) for name, step in reports]


def decisions(kind: str, restart: int | None = None) -> dict[str, int]:
    """Trial -> the step at which it was stopped; with `restart`, a new launch begins at that arrival."""
    made = scheduler(settings(kind), 2, TOTAL, [])
    stopped: dict[str, int] = {}
    past: dict[str, list[tuple[int, float]]] = {}
    live: dict[str, Told] = {}
    for number, (name, step, value) in enumerate(arrivals()):
        if number == restart:
            known = [replace(trial(0, {}, "stopped" if each in stopped else "open", *zip(*reports, strict=True)),
                             name=each) for each, reports in past.items()]
            made, live = scheduler(settings(kind), 2, TOTAL, known), {}
        if name in stopped:
            continue
        if name not in live:
            live[name] = Told(name)
            made.on_trial_add(None, live[name])
        past.setdefault(name, []).append((step, value))
        if made.on_trial_result(None, live[name], {"step": step, METRIC: value}) == "STOP":
            stopped[name] = step
    return stopped


def test_asha_stops_what_is_outside_the_best_half_of_a_rung() -> None:
    """The rule in a few lines: at a rung, below the median of those that came before."""
    expected: dict[str, int] = {}
    rungs: dict[int, list[float]] = {rung: [] for rung in RUNGS}
    for name, step, value in arrivals():
        if name not in expected and step in RUNGS:
            if rungs[step] and value < np.percentile(rungs[step], 50):
                expected[name] = step
            rungs[step].append(value)
    assert decisions("asha") == expected and 5 < len(expected) < TRIALS


@pytest.mark.parametrize("kind", ["asha", "median"])
@pytest.mark.parametrize("restart", [1, 40, 90, 200])
def test_a_restart_changes_no_decision(kind: str, restart: int) -> None:
    assert decisions(kind, restart) == decisions(kind) != {}


def test_a_step_that_is_told_twice_counts_once() -> None:
    made = scheduler(settings("median"), 2, TOTAL, [])
    one = Told("trial-0000")
    made.on_trial_add(None, one)
    for _ in range(3):
        made.on_trial_result(None, one, {"step": 3, METRIC: 0.5})
    assert [len(results) for results in made._results.values()] == [1]
