"""Closed forms of the learning rate."""
import pytest

from pipelines.config import TrainConfig
from pipelines.training.schedule import learning_rate


def test_warm_up_and_cosine():
    train = TrainConfig(lr=2.0, warmup_share=0.1, min_lr_share=0.0)
    assert learning_rate(train, 0, 100) == pytest.approx(0.2)
    assert learning_rate(train, 9, 100) == pytest.approx(2.0)
    assert learning_rate(train, 55, 100) == pytest.approx(1.0)
    assert learning_rate(train, 100, 100) == pytest.approx(0.0)


def test_soho_steps():
    train = TrainConfig(lr=1.0, schedule="step", warmup_share=0.0, milestones=(25 / 40, 35 / 40))
    assert [learning_rate(train, s, 40) for s in (0, 24, 25, 34, 35, 39)] == pytest.approx([1, 1, .1, .1, .01, .01])
