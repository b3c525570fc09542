"""Sweeps that are struck: a trial's worker, its driver, its Ray actor, the whole sweep; no trial is lost or run twice.

What is left is what an uninterrupted sweep leaves: the same trials with the same values.
"""
from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.faults import kill_family, workers
from tests.e2e import sweeps
from tests.e2e.conftest import Jobs, lines

pytestmark = [pytest.mark.timeout(900)]
KEYS = ("tune.trials=2",)
PATIENCE_S = 240


def wait(process: Any, happened: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := happened()):
        if process.poll() is not None or time.monotonic() > deadline:
            kill_family(process.pid) if process.poll() is None else None
            raise AssertionError(f"{what} did not come: {process.communicate()}")
        time.sleep(0.05)
    return found


def trained(run: Path) -> int:
    """The last step that a run has logged."""
    return max((line["step"] for line in read(run / "metrics.jsonl")), default=0)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


@pytest.fixture(scope="module")
def quiet(jobs: Jobs) -> dict[str, dict]:
    """The ends of an uninterrupted sweep."""
    done = sweeps.run(jobs, "quiet", *KEYS)
    assert done.returncode == 0, done.stdout + done.stderr
    return ends(jobs.storage / "quiet")


def ends(sweep: Path) -> dict[str, dict]:
    found = sweeps.assert_each_trial_once(sweep, 2)
    for name in found:
        sweeps.assert_each_step_of_a_trial_once(sweep / "trials" / name, 12)
    return {name: {key: end[key] for key in ("status", "step", "values")} for name, end in found.items()}


def holder(run: Path) -> int:
    """The pid of a trial's driver."""
    return int(json.loads((run / "lease.json").read_text())["pid"])


def strike_worker(run: Path) -> None:
    workers(run)[0].kill()


def strike_driver(run: Path) -> None:
    os.kill(holder(run), signal.SIGKILL)


def strike_actor(run: Path) -> None:
    psutil.Process(holder(run)).parent().kill()  # type: ignore[union-attr]


@pytest.mark.chaos
def test_a_killed_sweep_of_one_trial_goes_on(jobs: Jobs) -> None:
    """The short form: driver, trial, workers and Ray die at once, a line is torn, the same command continues."""
    keys = ("tune.trials=1", "tune.concurrent=1", "train.max_steps=6")
    process, sweep = sweeps.start(jobs, "short", *keys), jobs.storage / "short"
    wait(process, lambda: trained(sweep / "trials" / "trial-0000") >= 4, "step 4")
    kill_family(process.pid)
    process.communicate()
    with open(sweep / "trials.jsonl", "a", encoding="utf-8") as file:
        file.write('{"trial": "trial-0000", "event": "en')
    again = sweeps.run(jobs, "short", *keys)
    assert again.returncode == 0, again.stdout + again.stderr
    assert sweeps.assert_each_trial_once(sweep, 1)["trial-0000"]["step"] == 6
    sweeps.assert_each_step_of_a_trial_once(sweep / "trials" / "trial-0000", 6)
    assert len(lines(sweep / "trials" / "trial-0000" / "starts.jsonl")) == 2


@pytest.mark.full
@pytest.mark.parametrize("strike", [strike_worker, strike_driver, strike_actor])
def test_a_trial_survives(jobs: Jobs, quiet: dict, strike: Callable[[Path], None]) -> None:
    name = strike.__name__
    process = sweeps.start(jobs, name, *KEYS)
    run = jobs.storage / name / "trials" / "trial-0000"
    wait(process, lambda: trained(run) >= 4, "step 4")
    strike(run)
    out, err = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, out + err
    assert ends(jobs.storage / name) == quiet
    assert len(lines(run / "starts.jsonl")) >= 2


@pytest.mark.full
def test_a_killed_sweep_goes_on_with_the_same_command(jobs: Jobs, quiet: dict) -> None:
    """Killed twice: in the middle of the trials, and after a torn write; both leave a Ray cluster behind that ends."""
    sweep = jobs.storage / "killed"
    process = sweeps.start(jobs, "killed", *KEYS, "tune.concurrent=1")
    wait(process, lambda: trained(sweep / "trials" / "trial-0000") >= 7, "step 7")
    process.kill()
    process.communicate()
    second = sweeps.start(jobs, "killed", *KEYS, "tune.concurrent=1")
    wait(second, lambda: trained(sweep / "trials" / "trial-0001") >= 4, "step 4 of the second trial")
    kill_family(second.pid)
    second.communicate()
    with open(sweep / "trials.jsonl", "a", encoding="utf-8") as file:
        file.write('{"trial": "trial-0001", "event": "en')
    third = sweeps.run(jobs, "killed", *KEYS, "tune.concurrent=1")
    assert third.returncode == 0, third.stdout + third.stderr
    assert ends(sweep) == quiet
    assert "trial-0000 starts" not in third.stdout, "what has ended is not run again"


@pytest.mark.full
def test_a_preempted_sweep_exits_75_and_a_live_one_is_left_alone(jobs: Jobs, quiet: dict) -> None:
    sweep = jobs.storage / "preempted"
    process = sweeps.start(jobs, "preempted", *KEYS)
    wait(process, lambda: trained(sweep / "trials" / "trial-0000") >= 4, "step 4")
    late = sweeps.run(jobs, "preempted", *KEYS, timeout=60)
    assert late.returncode == 2 and "run preempted is live" in late.stderr
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75 and "run the same command again" in err, out + err
    assert sweeps.run(jobs, "preempted", *KEYS).returncode == 0
    assert ends(sweep) == quiet
