"""Runs that are struck at random ranks, steps and phases, by a seed: what is left is what an uninterrupted run leaves.

`make chaos` plays the short form. `CHAOS=full make chaos` plays all; each life that has passed is a line of
benchmarks/results/chaos.jsonl and is not played again, so that a campaign may be interrupted.
"""
from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from tests.chaos.faults import Life, full, short
from tests.chaos.player import Player, leftovers, shared_memory
from tests.e2e.conftest import REPOSITORY, Finished, Jobs, lines
from tests.e2e.outcome import (
    assert_each_position_once,
    assert_each_step_once,
    assert_same_bytes,
    assert_same_weights,
)

SEED = 20251121
RESULTS = REPOSITORY / "benchmarks" / "results" / "chaos.jsonl"
FULL = os.environ.get("CHAOS") == "full"
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


def passed() -> set[str]:
    """Names of the lives of this seed that have passed already."""
    return {line["life"] for line in lines(RESULTS) if line["seed"] == SEED} if RESULTS.exists() else set()


def survived(life: Life, jobs: Jobs, tiny: Finished) -> list[dict]:
    """Play `life`, hold what it leaves against the uninterrupted run; what the faults were and took."""
    buffers = shared_memory()
    player = Player(jobs, life)
    done = player.play()
    assert done.returncode == 0, (life, done.stderr)
    summary = json.loads((player.folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 12)
    assert summary["recoveries"] >= len(life.faults)
    assert_each_position_once(player.folder)
    assert_each_step_once(player.folder)
    assert_same_bytes(player.folder, tiny.folder)
    assert_same_weights(player.folder, tiny.folder)
    assert not leftovers(player.folder)
    assert shared_memory() <= buffers, "left in the machine's memory"
    stalls = list((player.folder / "stalls").iterdir())
    assert all("Thread 0x" in path.read_text() for path in stalls)
    if any(fault.signal == "SIGSTOP" for fault in life.faults):
        assert stalls, "whoever waited for a stopped worker has left its stacks"
    return player.struck


@pytest.mark.parametrize("life", full(SEED) if FULL else short(SEED), ids=lambda life: life.name)
def test_a_run_survives(life: Life, jobs: Jobs, tiny: Finished) -> None:
    if FULL and life.name in passed():
        pytest.skip("has passed already")
    struck = survived(life, jobs, tiny)
    if FULL:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"seed": SEED, "life": life.name, "workers": 2, "cpus": os.cpu_count(),
                                   "faults": struck, "result": "weights equal, every position once"}) + "\n")


@pytest.mark.full
def test_a_run_that_ended_before_its_last_file_is_completed(jobs: Jobs, tiny: Finished) -> None:
    """Nothing is left to train: preempted while it evaluates, then completed. A run may be moved to another name."""
    folder = jobs.storage / "moved"
    shutil.copytree(tiny.folder, folder, ignore=shutil.ignore_patterns("export", "report.html"))
    process = jobs.start("run.name=moved")
    assert process.stdout is not None
    assert any(line.startswith("evaluation: ") for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (75, "preempted while there was nothing to save: run the same command again\n")
    assert not (folder / "report.html").exists()
    done = jobs.run("run.name=moved")
    assert done.returncode == 0, done.stderr
    assert "finished already" not in done.stdout and (folder / "report.html").exists()
    assert json.loads((folder / "summary.json").read_text())["steps"] == 12
    assert_each_position_once(folder)
    assert_same_weights(folder, tiny.folder)


def test_the_faults_are_those_that_were_promised() -> None:
    """Of the full form: how many of each kind; the plan is the same in every process."""
    lives = full(SEED)
    kinds = [fault.kind for life in lives for fault in life.faults]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "worker": 20, "driver": 5, "head": 3, "orphan": 3, "preempt": 3}
    assert {fault.signal for life in lives for fault in life.faults} == {
        "", "SIGKILL", "SIGTERM", "SIGABRT", "SIGSTOP"}
    assert lives == full(SEED)
