"""A step that is not finite changes nothing, at any ZeRO stage; real processes, compared bit for bit."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines.training.nonfinite_ranks import GOOD

REPOSITORY = Path(__file__).resolve().parents[3]
SITES = ("input", "forward", "loss", "gradient")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes wrote."""
    path = tmp_path_factory.mktemp("nonfinite")
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "tests.pipelines.training.nonfinite_ranks", str(path)], text=True,
                          cwd=REPOSITORY, env=environment, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return path


def results(folder: Path, stage: int) -> dict[str, Any]:
    return torch.load(folder / f"zero{stage}.pt", weights_only=True)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("stage", range(4))
def test_a_spoilt_step_changes_no_bit_on_any_rank(folder: Path, stage: int, site: str) -> None:
    """Weights, moments, running statistics, memory and dictionary; one rank spoils it, both drop it."""
    for rank in (results(folder, stage), results(folder, stage)["rank 1"]):
        found = rank["sites"][site]
        assert found["found"] == ("gradient" if site == "gradient" else "loss")
        assert found["differs"] == []


@pytest.mark.parametrize("stage", range(4))
def test_training_goes_on_as_if_those_steps_had_not_been(folder: Path, stage: int) -> None:
    """The next step is that of a training that never ran them, to the last bit; the stream has moved on."""
    found = results(folder, stage)
    assert found["after"] == {"found": "", "loss": found["control"]["loss"], "grad_norm": found["control"]["grad_norm"]}
    assert found["control"]["differs"] == []
    steps = [found["sites"][site]["step"] for site in SITES]
    assert steps == list(range(GOOD + 1, GOOD + 1 + len(SITES)))
    positions = [p for rank in (found, found["rank 1"]) for site in SITES for p in rank["sites"][site]["positions"]]
    assert len(set(positions)) == len(positions) == 4 * len(SITES)


@pytest.mark.parametrize("stage", range(4))
def test_what_an_update_has_spoilt_is_found_before_a_checkpoint(folder: Path, stage: int) -> None:
    for checks in (results(folder, stage)["checks"], results(folder, stage)["rank 1"]["checks"]):
        assert {kind: told.split(":")[1] for kind, told in checks.items()} == {
            kind: f" not all {kind} are finite" for kind in ("moments", "weights", "buffers")}


def test_no_checkpoint_is_made_of_spoilt_moments(folder: Path) -> None:
    """By the training loop itself: the launch ends on both ranks, and the checkpoint before stays the newest."""
    end = torch.load(folder / "spoilt.pt", weights_only=True)
    assert all(told.startswith("step 2: not all moments are finite") for told in end["told"]), end["told"]
    assert end["checkpoints"] == ["step-00000001"]


def test_each_spoilt_step_leaves_its_batch(folder: Path) -> None:
    run = folder / "dictionary-world2-zero2"
    for step, site in enumerate(SITES, GOOD + 1):
        left = json.loads((run / "nonfinite" / f"step-{step:08d}.json").read_text())
        assert (left["step"], left["attempt"], left["checkpoint"]) == (step, 1, None)
        assert left["found"] == ("gradient" if site == "gradient" else "loss")
        batches = left["ranks"]
        assert [len(b) for b in batches.values()] == [2, 2]
        assert [sorted(b["position"] for rank in batches.values() for b in rank)] == [
            [8 * (step - 1) + 2 * atom for atom in range(4)]]
        assert all(len(b["sample_ids"]) == 6 for rank in batches.values() for b in rank)
        bad = [(rank, at) for rank, ran in batches.items() for at, b in enumerate(ran)
               if isinstance(b["losses"]["loss"], str)]
        assert bad == ([] if site == "gradient" else [("1", 0)])


def test_the_third_in_a_row_ends_the_launch_with_one_line_on_both_ranks(folder: Path) -> None:
    end = torch.load(folder / "end.pt", weights_only=True)
    assert end["step"] == 3
    for told in end["told"]:
        assert told.startswith("step 3: the loss is not finite, 3 steps in a row (train.max_nonfinite)")
        assert "'itc': 'inf'" in told and "'mlm': " in told
        assert "samples test/" in told and "the last good checkpoint is none" in told and "\n" not in told
