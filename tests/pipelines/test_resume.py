"""Harmless changes are taken, changed mathematics is refused with the difference."""
from dataclasses import replace

import pytest

from pipelines.config import PretrainConfig, ScalingConfig, TrainConfig
from pipelines.errors import UserError
from pipelines.resume import check_resumable, save_config


def test_what_may_change_and_what_may_not(tmp_path):
    config = PretrainConfig()
    check_resumable(config, tmp_path)
    save_config(config, tmp_path)
    check_resumable(replace(config, train=TrainConfig(lr=0.5)), tmp_path)  # nothing is trained yet
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    check_resumable(config, tmp_path)
    check_resumable(replace(config, train=TrainConfig(max_steps=7), scaling=ScalingConfig(workers=1)), tmp_path)
    with pytest.raises(UserError, match=r"train.lr: 0.0001 -> 0.5"):
        check_resumable(replace(config, train=TrainConfig(lr=0.5)), tmp_path)
