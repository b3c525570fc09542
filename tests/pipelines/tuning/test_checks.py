"""Mistakes of a sweep are found before anything starts, several together."""
from __future__ import annotations

import pytest

from jobs import cli
from pipelines.errors import UserError
from pipelines.tuning.checks import checked_space, incomparable, room
from pipelines.tuning.config import TuneConfig
from tests.pipelines.tuning.points import sweep_config

LR = {"train.lr": {"loguniform": [1e-4, 1e-2]}}


@pytest.mark.parametrize(("space", "keys", "said"), [
    (LR, ["tune.search=grid"], "tune.space.train.lr: tune.search=grid needs {grid: [...]}, not loguniform"),
    ({"train.lr": {"grid": [0.1, 0.2]}}, ["tune.search=tpe"], "a grid needs tune.search=grid or random"),
    (LR, ["tune.metric=retrieval/i2t_r6"], "no such measure; did you mean retrieval/i2t_r5?"),
    (LR, ["tune.metric=retrieval_unseen/i2t_r5"], "no trial would report retrieval_unseen/i2t_r5"),
    (LR, ["tune.metric=stua/a2t_r5", "tasks.stua.weight=0"], "no trial would report stua/a2t_r5"),
    (LR, ["tune.search=tpe", "tune.against=speed"], "tune.against=speed: no such measure"),
    (LR, ["tune.search=tpe", "tune.against=retrieval/mean_r5"], "name another measure than tune.metric"),
    (LR, ["tune.scheduler=asha", "train.schedule_steps=0"], "set train.schedule_steps"),
    (LR, ["tune.scheduler=asha", "train.validate_every=0"], "train.validate_every=0 gives none before the last of 12"),
    (LR, ["tune.scheduler=median", "tune.grace_steps=12"], "tune.grace_steps=12 is not below the 12 steps"),
    ({"groups.size": {"choice": [2, 4]}}, ["groups.path=/somewhere"], "leave groups.path out"),
])
def test_a_mistake_says_what_to_do(space: dict, keys: list[str], said: str) -> None:
    with pytest.raises(UserError) as told:
        checked_space(sweep_config(space, *keys))
    assert said in str(told.value) and "\n" not in str(told.value), told.value


def test_several_mistakes_are_told_together() -> None:
    with pytest.raises(UserError) as told:
        checked_space(sweep_config({"train.lrr": {"choice": [1]}}, "tune.metric=speed", "tune.scheduler=asha",
                                   "train.validate_every=0"))
    assert str(told.value).count("\n") == 2


@pytest.mark.parametrize("keys", [
    ["tune.search=tpe", "tune.against=firing_rate", "tune.scheduler=asha"], ["tune.against=firing_rate"],
    ["tune.trials=0"], ["tune.concurrent=0"], ["tune.reduction=1"]])
def test_settings_check_themselves(keys: list[str]) -> None:
    with pytest.raises(UserError, match=r"tune\.\w+=.* is not allowed"):
        sweep_config(LR, *keys)


def test_trials_at_the_same_time_leave_the_feed_a_cpu() -> None:
    config = sweep_config(LR, "tune.concurrent=3", "scaling.workers=2", "scaling.cpus_per_worker=0.5")
    assert room(config, 4, 0, "this machine's").ok
    found = room(config, 3.5, 0, "this machine's")
    assert not found.ok and "tune.concurrent=3 trials x scaling.workers=2" in found.finding
    gpus = sweep_config(LR, "tune.concurrent=3", "scaling.workers=2", "scaling.device=gpu")
    assert room(gpus, 64, 6, "the cluster's").ok and not room(gpus, 64, 5, "the cluster's").ok


def test_ends_on_other_samples_than_validations_are_told() -> None:
    space = {"train.lr": {"choice": [1e-3]}}
    demo = cli.parse(TuneConfig, [], description="", defaults_file=cli.CONFIGS / "tune" / "demo.yaml").config
    assert incomparable(demo) == ""
    other = sweep_config(space, "train.validate_every=3", "evaluation.validate_samples=64")
    assert "evaluation.final_samples=64 makes curves and ends comparable" in incomparable(other)
    for key in ("evaluation.final_samples=64", "train.validate_every=0"):
        assert incomparable(sweep_config(space, "train.validate_every=3", "evaluation.validate_samples=64", key)) == ""
