"""The search space: what is checked before anything starts, and that only configurations become points."""
from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import PretrainConfig
from pipelines.tuning.space import Domain, identity, read_space, with_values
from tests.pipelines.tuning.points import CONDITIONAL, sweep_config


def mistakes(space: dict, *keys: str) -> list[str]:
    found: list[str] = []
    read_space(space, sweep_config({}, *keys).shared(), found)
    return found


@pytest.mark.parametrize(("space", "said"), [
    ({}, "tune.space is empty"),
    ({"train.lrr": {"choice": [1]}}, "tune.space.train.lrr: unknown hyperparameter; did you mean train.lr?"),
    ({"model": {"choice": [1]}}, "tune.space.model: unknown hyperparameter"),
    ({"data.store": {"choice": ["a"]}}, "tune.space.data.store: not a hyperparameter"),
    ({"scaling.zero_stage": {"choice": [0, 1]}}, "tune.space.scaling.zero_stage: not a hyperparameter"),
    ({"train.data_version": {"choice": [1, 2]}}, "tune.space.train.data_version: not a hyperparameter"),
    ({"train.lr": {"choice": [0.1, float("inf")]}}, "tune.space.train.lr: inf is not allowed: a finite number"),
    ({"train.betas": {"choice": [[0.9, float("nan")]]}}, "[0.9, nan] is not allowed: a finite number"),
    ({"train.lr": {"uniform": [0.1, float("inf")]}}, "tune.space.train.lr: inf is not allowed: a finite number"),
    ({"train.schedule_steps": {"choice": [5, 6]}}, "tune.space.train.schedule_steps: not a hyperparameter"),
    ({"train.lr": 0.1}, "tune.space.train.lr=0.1 is not allowed: write {choice: [...]}"),
    ({"train.lr": {"normal": [0, 1]}}, "is not allowed: write {choice: [...]}"),
    ({"train.lr": {"choice": []}}, "tune.space.train.lr: choice needs a list of values"),
    ({"train.lr": {"choice": ["fast"]}}, "tune.space.train.lr: 'fast' is not allowed: a value of type float"),
    ({"train.lr": {"choice": [0.1, 0.1]}}, "tune.space.train.lr: a value stands twice"),
    ({"train.lr": {"uniform": [0.2, 0.1]}}, "uniform needs [low, high] with low < high"),
    ({"train.lr": {"uniform": [0.1, 0.2, 0.3]}}, "uniform needs [low, high] with low < high"),
    ({"train.lr": {"loguniform": [0, 0.1]}}, "loguniform needs a low end above 0"),
    ({"train.lr": {"uniform": [-0.1, 0.1]}}, "no legal point has the value -0.1: train.lr=-0.1 is not allowed"),
    ({"model.abstract.carry": {"uniform": [0, 1]}}, "0 is not allowed: a value of type one of reset"),
    ({"model.abstract.carry": {"choice": ["keep"]}}, "'keep' is not allowed: a value of type one of reset, detach"),
    ({"model.abstract.window": {"choice": ["shared"]}, "model.abstract.time_steps": {"choice": [3, 4]}},
     "no legal point has the value 3: "),
    ({"model.abstract.window": {"choice": ["shared"]}, "model.abstract.time_steps": {"choice": [3, 5]}},
     "needs groups.size=4 to divide"),
])
def test_a_mistake_names_the_hyperparameter_and_the_mend(space: dict, said: str) -> None:
    found = mistakes(space)
    assert len(found) >= 1 and said in found[0], found


def test_all_mistakes_are_told_together() -> None:
    assert len(mistakes({"train.lrr": {"choice": [1]}, "train.lr": 1, "train.clip": {"uniform": [2, 1]}})) == 3


def test_a_value_that_only_some_points_may_have_is_fine() -> None:
    assert mistakes(CONDITIONAL) == []


def test_a_point_is_legal_exactly_where_g_divides_t() -> None:
    found: list[str] = []
    space = read_space(CONDITIONAL, sweep_config({}).shared(), found)
    for window, steps, size in itertools.product(("per_sample", "shared"), (2, 3, 4, 6), (2, 3, 4)):
        point = {"model.abstract.window": window, "model.abstract.time_steps": steps, "groups.size": size}
        assert (space.refusal(point) == "") == (window == "per_sample" or steps % size == 0), point


def test_values_reach_the_configuration_and_nothing_else_changes() -> None:
    base = PretrainConfig()
    changed = with_values(base, {"train.lr": 0.5, "model.abstract.tau": 3.0, "model.abstract.carry": "bptt"})
    assert (changed.train.lr, changed.model.abstract.tau, changed.model.abstract.carry) == (0.5, 3.0, "bptt")
    assert with_values(changed, {"train.lr": base.train.lr, "model.abstract.tau": base.model.abstract.tau,
                                 "model.abstract.carry": base.model.abstract.carry}) == base


def test_a_list_is_a_value_like_another() -> None:
    found: list[str] = []
    space = read_space({"model.abstract.channels": {"choice": [[32], [16, 32]]}}, sweep_config({}).shared(), found)
    assert found == [] and space.domains["model.abstract.channels"].values == ((32,), (16, 32))
    assert space.configure({"model.abstract.channels": (16, 32)}).model.abstract.channels == (16, 32)


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e3), st.integers(0, 10_000), st.sampled_from(["uniform", "loguniform"]))
def test_draws_stay_between_the_ends(low: float, factor: float, seed: int, kind: str) -> None:
    domain = Domain(kind, (low, low * factor))  # type: ignore[arg-type]
    assert low <= domain.draw(random.Random(seed)) <= low * factor


def test_loguniform_draws_each_octave_equally_often() -> None:
    rng, domain = random.Random(0), Domain("loguniform", (1.0, 16.0))
    octaves = [int(math.log2(domain.draw(rng))) for _ in range(4000)]
    assert all(abs(octaves.count(octave) - 1000) < 120 for octave in range(4))


def test_whole_numbers_include_both_ends() -> None:
    for kind in ("uniform", "loguniform"):
        rng, domain = random.Random(0), Domain(kind, (1, 4), whole=True)  # type: ignore[arg-type]
        assert {domain.draw(rng) for _ in range(500)} == {1, 2, 3, 4}


def test_an_identity_does_not_depend_on_the_order() -> None:
    assert identity({"a": 1, "b": (2,)}) == identity({"b": [2], "a": 1}) != identity({"a": 1, "b": [3]})
