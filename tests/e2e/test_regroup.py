"""Regrouping while training: every stage is there, feeds every sample once an epoch, and is the same after a kill."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.faults import Life, life
from tests.chaos.player import Player
from tests.e2e.conftest import Finished, Jobs
from tests.e2e.outcome import assert_same_bytes, assert_same_weights, recorded

KEYS = ("groups.regroup_every=1", "checkpoint.keep=10")
EPOCH_GROUPS = 24


@pytest.fixture(scope="module")
def regrouped(jobs: Jobs) -> Path:
    """An uninterrupted run of four epochs, each with groups of its own."""
    done = jobs.run("run.name=regrouped", *KEYS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("built anew in") == 3
    return jobs.storage / "regrouped"


@pytest.mark.full
def test_every_epoch_has_its_own_groups_of_all_samples(regrouped: Path, tiny: Finished) -> None:
    epochs: list[set[frozenset[str]]] = [set() for _ in range(4)]
    for line in recorded(regrouped / "samples"):
        epochs[line["position"] // EPOCH_GROUPS].add(frozenset(line["sample_ids"]))
    for groups in epochs:
        assert len(groups) == EPOCH_GROUPS
        assert len({sample for group in groups for sample in group}) == 94
    assert all(len(epochs[0] & epochs[later]) < EPOCH_GROUPS / 2 for later in (1, 2, 3))
    stages = sorted((regrouped / "stages").glob("stage-*/groups/groups.json"))
    assert len(stages) == 3
    models = {json.loads(path.read_text())["configuration"]["model"] for path in stages}
    assert len(models) == 3
    first = [line for line in recorded(regrouped / "samples") if line["position"] < EPOCH_GROUPS]
    same = {line["position"]: line["checksum"] for line in recorded(tiny.folder / "samples")}
    assert all(line["checksum"] == same[line["position"]] for line in first), "the first stage is the store's groups"


@pytest.mark.full
def test_killed_drivers_change_no_stage(regrouped: Path, jobs: Jobs) -> None:
    struck: Life = life("regrouped-killed", ["driver", "driver"], 7)
    player = Player(jobs, struck, extra=KEYS)
    done = player.play()
    assert done.returncode == 0, done.stderr
    assert_same_bytes(player.folder, regrouped)
    assert_same_weights(player.folder, regrouped)
