"""Harmless changes are taken, changed mathematics is refused with the difference."""
from dataclasses import replace

import pytest

from ashnets.config import ITCConfig, TasksConfig
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
    harmless = replace(config, train=TrainConfig(max_steps=7), scaling=ScalingConfig(workers=1, zero_stage=3))
    check_resumable(harmless, tmp_path)
    with pytest.raises(UserError, match=r"train.lr: 0.0001 -> 0.5"):
        check_resumable(replace(config, train=TrainConfig(lr=0.5)), tmp_path)


def test_a_contrast_over_all_workers_binds_a_run_to_their_number(tmp_path):
    config = PretrainConfig(tasks=TasksConfig(itc=ITCConfig(gather=True)), scaling=ScalingConfig(workers=2))
    save_config(config, tmp_path)
    with Lease(tmp_path) as lease:
        make_checkpoint(tmp_path, lease.attempt, 1, world_size=2)
    check_resumable(config, tmp_path)
    with pytest.raises(UserError, match="trained by 2: resume it with scaling.workers=2"):
        check_resumable(replace(config, scaling=ScalingConfig(workers=1)), tmp_path)
    with pytest.raises(ValueError, match="scaling.workers: tasks.itc.gather=true"):
        replace(config, scaling=ScalingConfig(workers=(1, 2)))


def test_the_hash_follows_the_mathematics_alone():
    config = PretrainConfig()
    assert config_hash(config) == config_hash(replace(config, scaling=ScalingConfig(workers=1, zero_stage=3)))
    assert config_hash(config) != config_hash(replace(config, train=TrainConfig(lr=0.5)))
