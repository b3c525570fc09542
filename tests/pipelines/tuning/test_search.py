"""Which point comes next: legal, new, the same after a restart; and that TPE learns."""
from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pipelines.tuning.checks import legal
from pipelines.tuning.search import next_point, study_of
from pipelines.tuning.space import Point, Space, identity, read_space
from pipelines.tuning.trials import Trial
from tests.pipelines.tuning.points import CONDITIONAL, sweep_config, trial

GRID = {key: {"grid": domain["choice"]} for key, domain in CONDITIONAL.items()}


def walk(space_of: dict, *keys: str, most: int = 100, score=None) -> list[Point]:
    """The points of a whole sweep, each trial finished before the next is planned."""
    config = sweep_config(space_of, *keys)
    space = read_space(space_of, config.shared(), [])
    trials: list[Trial] = []
    while len(trials) < most:
        point = next_point(space, config.tune, config.run.seed, trials, lambda point: legal(config, space, point))
        if point is None:
            break
        trials.append(trial(len(trials), point, values=(0.0, score(point) if score else 0.0)))
    return [each.point for each in trials]


def legal_points() -> set[str]:
    """By hand: without `shared`, or where G divides T."""
    return {identity({"model.abstract.window": window, "model.abstract.time_steps": steps, "groups.size": size})
            for window, steps, size in itertools.product(("per_sample", "shared"), (2, 3, 4, 6), (2, 3, 4))
            if window == "per_sample" or steps % size == 0}


def test_a_grid_is_all_legal_points_each_once() -> None:
    points = walk(GRID, "tune.search=grid", "tune.trials=0")
    assert len(points) == len(legal_points()) == 18
    assert {identity(point) for point in points} == legal_points()


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_finite_space_is_used_up_without_repeating_a_point(search: str) -> None:
    points = walk(CONDITIONAL, f"tune.search={search}")
    assert len(points) == 18 and {identity(point) for point in points} == legal_points()


def test_random_search_goes_through_the_grid_with_every_draw() -> None:
    space = {"model.abstract.carry": {"grid": ["reset", "detach", "bptt"]}, "train.lr": {"loguniform": [1e-4, 1e-2]}}
    points = walk(space, most=9)
    for draw in range(3):
        three = points[3 * draw:3 * draw + 3]
        assert {point["model.abstract.carry"] for point in three} == {"reset", "detach", "bptt"}
        assert len({point["train.lr"] for point in three}) == 1
    assert len({point["train.lr"] for point in points}) == 3


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_the_next_point_is_the_same_after_a_restart_and_differs_with_the_seed(search: str) -> None:
    space = {"train.lr": {"loguniform": [1e-4, 1e-2]}, "train.clip": {"uniform": [1, 10]}}
    points = walk(space, f"tune.search={search}", most=6)
    assert points == walk(space, f"tune.search={search}", most=6)
    assert points != walk(space, f"tune.search={search}", "run.seed=1", most=6)


def test_points_that_would_not_measure_what_counts_never_come() -> None:
    space = {"tasks.itm.weight": {"choice": [0.0, 1.0]}, "train.lr": {"uniform": [0.1, 0.2]}}
    points = walk(space, "tune.metric=itm/accuracy_random", most=10)
    assert len(points) == 10 and {point["tasks.itm.weight"] for point in points} == {1.0}


def test_tpe_comes_nearer_to_the_best_than_random() -> None:
    space = {"train.lr": {"loguniform": [1e-6, 1]}, "train.clip": {"uniform": [1, 100]}}

    def score(point: Point) -> float:
        return -abs(point["train.clip"] - 70) / 100
    late = {search: walk(space, f"tune.search={search}", most=40, score=score)[20:] for search in ("random", "tpe")}
    means = {search: sum(map(score, points)) / 20 for search, points in late.items()}
    assert means["tpe"] > means["random"] / 2


def test_optuna_is_told_each_trial_as_what_it_is() -> None:
    config = sweep_config({"train.lr": {"uniform": [0, 1]}}, "tune.search=tpe")
    space = Space(config.shared(), read_space({"train.lr": {"uniform": [0.1, 1]}}, config.shared(), []).domains)
    point = {"train.lr": 0.5}
    trials = [trial(0, point), trial(1, point, "stopped"), replace(trial(2, point), status="open", values={}),
              replace(trial(3, point), status="failed", values={}), replace(trial(4, point), values={})]
    study = study_of(space, config.tune, trials)
    assert [(told.state.name, told.value) for told in study.trials] == [
        ("COMPLETE", 0.2), ("PRUNED", None), ("RUNNING", None)]
    assert study.trials[1].intermediate_values == {12: 0.2}
