"""The configuration table: every key, and exactly the changed ones marked."""
from __future__ import annotations

from dataclasses import replace

from pipelines.config import PretrainConfig, TrainConfig
from pipelines.report.settings import settings


def test_every_key_with_its_default_and_only_changes_marked():
    config = PretrainConfig(train=TrainConfig(lr=0.5, betas=(0.9, 0.98)))
    config = replace(config, feed=replace(config.feed, flip=False))
    rows = {row.key: row for row in settings(config)}
    assert {key for key, row in rows.items() if row.changed} == {"train.lr", "train.betas", "feed.flip"}
    assert rows["train.betas"] == ("train.betas", "[0.9, 0.98]", "[0.9, 0.999]")
    assert rows["feed.flip"] == ("feed.flip", "false", "true")
    assert rows["run.name"].value == "demo" and "evaluation.targets" in rows and len(rows) > 80
