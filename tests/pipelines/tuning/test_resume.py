"""Which sweep a command may continue."""
from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.errors import UserError
from pipelines.tuning.resume import check_resumable, save_sweep
from pipelines.tuning.trials import Journal
from tests.pipelines.tuning.points import sweep_config

SPACE = {"train.lr": {"choice": [0.1, 0.2]}}


def started(sweep: Path, *keys: str) -> Path:
    save_sweep(sweep_config(SPACE, *keys), sweep)
    Journal(sweep).planned("trial-0000", {"train.lr": 0.1})
    return sweep


@pytest.mark.parametrize("keys", [["tune.trials=9"], ["tune.concurrent=2"], ["scaling.workers=1"],
                                  ["checkpoint.keep=1"]])
def test_more_trials_and_what_changes_no_result_are_taken(tmp_path: Path, keys: list[str]) -> None:
    check_resumable(sweep_config(SPACE, *keys), started(tmp_path))


@pytest.mark.parametrize("keys", [["tune.search=tpe"], ["train.clip=1"], ["evaluation.validate_samples=9"],
                                  ["train.max_steps=5"], ["train.data_version=1"]])
def test_another_search_is_refused_with_the_difference(tmp_path: Path, keys: list[str]) -> None:
    key = keys[0].partition("=")[0]
    with pytest.raises(UserError, match=rf"was started with another configuration \({key}: "):
        check_resumable(sweep_config(SPACE, *keys), started(tmp_path))


def test_a_sweep_that_ended_before_its_first_trial_binds_nobody(tmp_path: Path) -> None:
    """A typing mistake in the space can be mended under the same name."""
    save_sweep(sweep_config(SPACE), tmp_path)
    check_resumable(sweep_config({"train.lr": {"choice": [0.1, 0.3]}}), tmp_path)


def test_a_key_that_is_younger_than_the_sweep_had_its_default(tmp_path: Path) -> None:
    started(tmp_path)
    saved = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    del saved["train.data_version"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(saved))
    check_resumable(sweep_config(SPACE), tmp_path)
    with pytest.raises(UserError, match="train.data_version: 0 -> 1"):
        check_resumable(sweep_config(SPACE, "train.data_version=1"), tmp_path)
