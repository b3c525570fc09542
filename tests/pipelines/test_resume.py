"""Harmless changes are taken, changed mathematics is refused with the difference."""
from dataclasses import replace

import pytest

from pipelines.config import PretrainConfig, ScalingConfig, TrainConfig
from pipelines.errors import UserError
from pipelines.resume import check_resumable, config_hash, save_config
from pipelines.training.lease import Lease
from tests.pipelines.training.small_checkpoints import make_checkpoint


def test_what_may_change_and_what_may_not(tmp_path):
    config = PretrainConfig()
    check_resumable(config, tmp_path)
    save_config(config, tmp_path)
    check_resumable(replace(config, train=TrainConfig(lr=0.5)), tmp_path)  # nothing is trained yet
    with Lease(tmp_path) as lease:
        make_checkpoint(tmp_path, lease.attempt, 1)
    check_resumable(config, tmp_path)
    check_resumable(replace(config, train=TrainConfig(max_steps=7), scaling=ScalingConfig(workers=1, zero_stage=3)), tmp_path)
    with pytest.raises(UserError, match=r"train.lr: 0.0001 -> 0.5"):
        check_resumable(replace(config, train=TrainConfig(lr=0.5)), tmp_path)


def test_the_hash_follows_the_mathematics_alone():
    config = PretrainConfig()
    assert config_hash(config) == config_hash(replace(config, scaling=ScalingConfig(workers=1, zero_stage=3)))
    assert config_hash(config) != config_hash(replace(config, train=TrainConfig(lr=0.5)))
