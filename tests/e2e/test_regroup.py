"""Regrouping while training: every stage is there, feeds every sample once an epoch, and is the same after a kill."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.faults import Life, life
from tests.chaos.player import Player
from tests.e2e.conftest import Finished, Jobs
from tests.e2e.outcome import assert_same_bytes, assert_same_weights, recorded
from tests.small_disk import small_disk

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


@pytest.mark.full
def test_a_full_disk_ends_the_launch_and_space_lets_it_go_on(regrouped: Path, jobs: Jobs) -> None:
    """The stages have a disk of their own, which holds the first one's model and not its groups."""
    run = jobs.storage / "regrouped-full"
    model = sum(file.stat().st_size for file in (regrouped / "stages" / "stage-0001" / "model").iterdir())
    with small_disk(run / "stages", f"size={model + 65536}") as disk:
        done = jobs.run("run.name=regrouped-full", *KEYS)
        assert done.returncode == 2, done.stderr
        told = f"the disk of {run}/stages/stage-0001/groups is full: building the groups (groups.path) takes about "
        assert done.stderr.startswith(f"error: stage 1 of the groups could not be built: {told}")
        assert done.stderr.count("\n") == 1 and "run the same command again" in done.stderr
        assert f"training ends where it needs it: {told}" in done.stdout
        assert not [path for path in (run / "stages" / "stage-0001").iterdir() if path.name.startswith(".")]
        disk.change("size=1g")
        done = jobs.run("run.name=regrouped-full", *KEYS)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("built anew in") == 3
        assert_same_bytes(run, regrouped)
        assert_same_weights(run, regrouped)
