"""`ray job submit -- python jobs/pretrain.py`, as the system is used: where it writes, how it exits."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipelines.precision import cpu_has_bf16
from pipelines.resume import load_config
from pipelines.training.run_directory import read_lines
from tests.e2e import sweeps
from tests.e2e.conftest import REPOSITORY, Finished, Jobs
from tests.e2e.outcome import assert_each_position_once

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(jobs: Jobs, tiny: Finished) -> Iterator[tuple[str, dict[str, str]]]:
    """A head started after a run of ours, as in `make pretrain` and then `ray start --head`: dashboard and environment.

    It is stopped by its own processes' ids, never by `ray stop`, which would end other clusters too.
    """
    environment = jobs.environment() | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": "60"}  # as ray_cluster.yaml sets it
    dashboard = free_port()
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
         f"--temp-dir=/tmp/ray-submit-{os.getpid()}"],
        env=environment, cwd=jobs.home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.kill()
        head.wait()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def submit(dashboard: str, environment: dict[str, str], *keys: str, job: str = "pretrain",
           options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    deadline = time.monotonic() + 90
    while True:
        result = subprocess.run(
            [RAY, "job", "submit", "--address", dashboard, "--working-dir", str(REPOSITORY), *options, "--", "python",
             f"jobs/{job}.py", "--config", "tests/e2e/tiny.yaml", *keys],
            env=environment, capture_output=True, text=True, timeout=400)
        said = result.stderr + result.stdout
        starting = "Failed to connect to Ray" in said or "No available agent" in said
        if not starting or time.monotonic() > deadline:
            return result
        time.sleep(2)


def test_a_submitted_job_trains_below_home_and_exits_truthfully(head, jobs: Jobs):
    dashboard, environment = head
    done = submit(dashboard, environment, f"data.store={jobs.store}", "train.max_steps=3", "train.precision=auto")
    assert done.returncode == 0, done.stdout + done.stderr
    settled = load_config(jobs.home / "ashnets" / "runs" / "tiny").train.precision
    assert settled == ("bf16" if cpu_has_bf16() else "fp32") and f"on cpu, {settled}, ZeRO" in done.stdout
    summary = json.loads((jobs.home / "ashnets" / "runs" / "tiny" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("stopped", 3)
    mistake = submit(dashboard, environment, f"data.store={jobs.store}", "train.max_step=3")
    assert mistake.returncode != 0
    assert "did you mean train.max_steps?" in mistake.stdout and "Traceback" not in mistake.stdout


@pytest.mark.full
def test_ray_job_stop_leaves_a_checkpoint_and_a_second_submission_continues_from_it(head, jobs: Jobs):
    dashboard, environment = head
    keys = (f"data.store={jobs.store}", "run.name=stopped", "train.schedule_steps=60", "train.validate_every=0",
            "checkpoint.every_steps=50", "evaluation.rerank=0")
    begun = submit(dashboard, environment, *keys, options=("--no-wait", "--submission-id=stopped"))
    assert begun.returncode == 0, begun.stdout + begun.stderr
    run = jobs.home / "ashnets" / "runs" / "stopped"
    deadline = time.monotonic() + 200
    while not any("loss" in line for line in read_lines(run / "metrics.jsonl")):
        assert time.monotonic() < deadline, "no step was trained"
        time.sleep(0.2)
    subprocess.run([RAY, "job", "stop", "--address", dashboard, "stopped"], env=environment, check=True,
                   capture_output=True, timeout=100)
    [checkpoint] = [folder.name for folder in (run / "checkpoints").glob("step-*")]
    step = int(checkpoint.removeprefix("step-"))
    assert 1 <= step < 50, "made since it was stopped"
    done = submit(dashboard, environment, *keys)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in read_lines(run / "starts.jsonl")] == [0, step]
    assert_each_position_once(run, 60)


@pytest.mark.full
def test_a_submitted_sweep_trains_and_a_second_submission_continues_it(head, jobs: Jobs):
    dashboard, environment = head
    keys = (f"data.store={jobs.store}", "run.name=sweep", "tune.space={train.lr: {choice: [1e-3, 3e-3, 1e-4]}}",
            *sweeps.KEYS, "tune.concurrent=1")
    done = submit(dashboard, environment, *keys, "tune.trials=1", job="tune")
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = jobs.home / "ashnets" / "runs" / "sweep"
    first = sweeps.assert_each_trial_once(sweep, 1)
    again = submit(dashboard, environment, *keys, "tune.trials=2", job="tune")
    assert again.returncode == 0, again.stdout + again.stderr
    both = sweeps.assert_each_trial_once(sweep, 2)
    assert both["trial-0000"] == first["trial-0000"] and "trial-0000 starts" not in again.stdout
