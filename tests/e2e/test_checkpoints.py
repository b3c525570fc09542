"""Real runs whose checkpoints are damaged, whose nodes go and come back, whose number of workers changes."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipelines.training import checkpoint
from tests.e2e.conftest import Finished, Jobs
from tests.e2e.test_pretrain import STEP_GROUPS, assert_each_position_once

pytestmark = pytest.mark.chaos


def whole_lines(path: Path) -> list[dict]:
    """The lines of a file that may end in the middle of one."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def worlds(folder: Path) -> list[int]:
    """World size of each start of the worker group."""
    return [line["world_size"] for line in whole_lines(folder / "starts.jsonl")]


def last_step(folder: Path) -> int:
    return max((line["step"] for line in whole_lines(folder / "metrics.jsonl") if "loss" in line), default=0)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str], what: str, seconds: float = 240) -> None:
    """Wait until `reached()`; fail where the driver ends before, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, f"the driver ended before: {what}\n{process.communicate()}"
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.1)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_training_follows_the_nodes(jobs: Jobs) -> None:
    """Two workers on two nodes; one node dies in the middle of an epoch, one worker goes on; it comes back, so does the
    second. Every group of every step is trained on once, and a step is as large as ever."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    folder, process = jobs.storage / "elastic", None
    try:
        node = cluster.add_node(num_cpus=3)
        environment = jobs.environment() | {
            "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "40"}
        keys = ("run.name=elastic", "scaling.workers=[1,2]", "scaling.cpus_per_worker=2", "train.schedule_steps=100000",
                "train.validate_every=0", "checkpoint.every_steps=10", "checkpoint.keep=2")
        process = subprocess.Popen(jobs.arguments(*keys), cwd=jobs.home, env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        wait_until(lambda: last_step(folder) > 25, process, "25 steps on two workers")
        assert worlds(folder) == [2]
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: worlds(folder)[-1] == 1, process, "a start on one worker")
        step = last_step(folder)
        wait_until(lambda: last_step(folder) > step + 25, process, "25 steps on one worker")
        cluster.add_node(num_cpus=3)
        wait_until(lambda: worlds(folder)[-1] == 2, process, "a start on two workers again")
        step = last_step(folder)
        wait_until(lambda: last_step(folder) > step + 25, process, "25 steps on two workers again")
    finally:
        if process and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        cluster.shutdown()
    steps = last_step(folder) - 1  # the last one may be torn
    seen = Counter(line["position"] for path in (folder / "samples").glob("rank-*.jsonl") for line in whole_lines(path)
                   if line["step"] <= steps)
    assert seen == Counter(range(steps * STEP_GROUPS))
    assert [line["step"] for line in whole_lines(folder / "metrics.jsonl")][:steps] == list(range(1, steps + 1))
    assert worlds(folder)[0] == 2 and 1 in worlds(folder) and worlds(folder)[-1] == 2


@pytest.mark.full
def test_damaged_checkpoints_are_shown_and_other_workers_go_on(tiny: Finished, jobs: Jobs) -> None:
    """A run stopped at step 6 loses a bit of its checkpoint, and goes on from step 3 on one worker at ZeRO-3."""
    stopped = jobs.run("run.name=moved-on", "train.max_steps=6")
    assert stopped.returncode == 0, stopped.stderr
    folder = jobs.storage / "moved-on"
    shard = folder / "checkpoints" / "step-00000006" / "state" / "mp_rank_00_model_states.pt"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    done = jobs.run("run.name=moved-on", "scaling.workers=1", "scaling.zero_stage=3")
    assert done.returncode == 0, done.stderr
    told = done.stdout.replace("\n", "")
    assert "warning: checkpoint step-00000006 is damaged" in told and shard.name in told
    assert (folder / "checkpoints" / "damaged-step-00000006").is_dir()
    starts = whole_lines(folder / "starts.jsonl")
    assert [(line["step"], line["world_size"]) for line in starts] == [(0, 2), (3, 1)]
    assert_each_position_once(folder, 12)
    mine, theirs = (json.loads((run / "summary.json").read_text()) for run in (folder, tiny.folder))
    assert mine["steps"] == 12 and mine["world_size"] == 1 and mine["status"] == "finished"
    first = {line["step"]: line["loss"] for line in whole_lines(folder / "metrics.jsonl") if "loss" in line}
    expected = {line["step"]: line["loss"] for line in whole_lines(tiny.folder / "metrics.jsonl") if "loss" in line}
    assert first[4] == pytest.approx(expected[4], rel=1e-5), "the first step behind the checkpoint"
    assert theirs["steps"] == 12


def test_the_best_validation_is_kept(tiny: Finished) -> None:
    """The run validates at step 6 and checkpoints every 3: that of step 6 carries the score, the others none."""
    measured = [line for line in whole_lines(tiny.folder / "metrics.jsonl") if "retrieval/i2t_r5" in line]
    assert [line["step"] for line in measured] == [6]
    mean = (measured[0]["retrieval/i2t_r5"] + measured[0]["retrieval/t2i_r5"]) / 2
    scores = {manifest.step: manifest.score for _, manifest in checkpoint.whole(tiny.folder)}
    assert scores == {3: None, 6: pytest.approx(mean), 9: None, 12: None}


@pytest.mark.full
def test_a_full_disk_ends_the_launch_and_space_lets_it_go_on(jobs: Jobs, tmp_path: Path) -> None:
    """The checkpoint of step 3 fits on the disk, that of step 6 does not (245 MB each)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        keys = (f"run.storage={disk}", "run.name=full", "train.max_steps=6", "train.validate_every=0",
                "evaluation.rerank=0")
        done = jobs.run(*keys)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: no space for the checkpoint of step 6: it needs 2")
        assert "continues from step 3" in done.stderr and done.stderr.count("\n") == 1
        assert [folder.name for folder in checkpoint.folders(disk / "full")] == ["step-00000003"]
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        done = jobs.run(*keys)
        assert done.returncode == 0, done.stderr
        assert [line["step"] for line in whole_lines(disk / "full" / "starts.jsonl")] == [0, 3]
        assert_each_position_once(disk / "full", 6)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
