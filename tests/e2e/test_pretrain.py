"""`jobs/pretrain.py` as a user runs it: what it writes, what a second, killed or mistaken launch does."""
from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import Finished, Jobs, lines
from tests.pipelines.report.html_checks import check_page

TASKS = ("itm", "mlm", "mvm", "itc", "stua")
GROUPS = 24  # 94 scenes in groups of 4, the last one padded
STEP_GROUPS = 8


def positions(folder: Path) -> list[tuple[int, int]]:
    """(position, step) of every group trained on, in order."""
    return sorted((line["position"], line["step"]) for path in (folder / "samples").glob("rank-*.jsonl")
                  for line in lines(path))


def assert_each_position_once(folder: Path, steps: int) -> None:
    assert positions(folder) == [(p, p // STEP_GROUPS + 1) for p in range(steps * STEP_GROUPS)]


def assert_same_weights(a: Path, b: Path) -> None:
    mine, other = load_file(a / "export" / "model.safetensors"), load_file(b / "export" / "model.safetensors")
    assert mine.keys() == other.keys()
    for name in mine:
        assert torch.equal(mine[name], other[name]), name


def test_a_run_leaves_what_it_promises(tiny: Finished):
    summary = json.loads((tiny.folder / "summary.json").read_text())
    assert (summary["name"], summary["status"], summary["steps"]) == ("tiny", "finished", 12)
    assert summary["samples"] == 12 * STEP_GROUPS * 4 and summary["world_size"] == 2 and summary["recoveries"] == 0
    for key in ("retrieval/i2t_r1", "retrieval/t2i_r10", "retrieval_reranked/i2t_r5", "stua/a2t_r5",
                "itm/accuracy_random", "itm/accuracy_hard", "mlm/accuracy_right_image",
                "mlm/accuracy_wrong_image", "mvm/explained"):
        assert -5 < summary["metrics"][key] <= 1, key
    assert summary["chance"]["retrieval/t2i_r5"] == pytest.approx(5 / 24, abs=0.02)
    assert len(summary["firing_rates"]) == 2 and summary["versions"]["torch"].startswith("2.11")
    assert "tiny: finished after 12 steps" in tiny.output and str(tiny.folder) in tiny.output.replace("\n", "")


def test_the_report_shows_the_run_and_loads_nothing(tiny: Finished):
    summary = json.loads((tiny.folder / "summary.json").read_text())
    assert set(summary["steps_to_target"]) == {"retrieval/i2t_r5", "retrieval/t2i_r5"}
    assert all(step in (6, None) for steps in summary["steps_to_target"].values() for step in steps.values())
    html = (tiny.folder / "report.html").read_text()
    assert len(html) < 3_000_000
    page = check_page(html)
    assert str(tiny.folder / "report.html") in tiny.output.replace("\n", "")
    for told in ("tiny", "12 of 12 steps", "24 groups of 4", "train.schedule_steps"):
        assert told in page.text
    for key in ("retrieval/i2t_r5", "retrieval/t2i_r5", "stua/a2t_r5", "itm/accuracy_hard", "mlm/accuracy_right_image",
                "mvm/explained"):
        assert key in page.text and f"{summary['metrics'][key]:.3f}" in page.text, key
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) > 40 and all(p["src"].startswith("data:image/webp;base64,") for p in pictures)
    charts = " ".join(attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img")
    for title in ("Loss: total", "Loss: spikes to text", "Held-out retrieval", "Learning rate", "Gradient norm",
                  "Firing rates", "Images per second", "waiting for data"):
        assert title in charts


def test_every_step_is_logged_once_with_every_loss(tiny: Finished):
    metrics = lines(tiny.folder / "metrics.jsonl")
    steps = [line for line in metrics if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    for line in steps:
        assert {f"loss/{task}" for task in TASKS} <= line.keys()
        assert {"attempt", "epoch", "samples", "lr", "grad_norm", "samples_per_s", "data_wait_share"} <= line.keys()
        weighted = sum(line[f"loss/{task}"] for task in TASKS)
        assert line["loss"] == pytest.approx(weighted, rel=1e-4)
    assert [line["step"] for line in metrics if "retrieval/i2t_r5" in line] == [6]
    assert any((tiny.folder / "tensorboard").iterdir())


def test_every_group_is_trained_on_once_an_epoch(tiny: Finished):
    assert_each_position_once(tiny.folder, 12)
    records = [line for path in (tiny.folder / "samples").glob("rank-*.jsonl") for line in lines(path)]
    for epoch in range(4):
        seen = sorted(r["group_id"] for r in records if r["position"] // GROUPS == epoch)
        assert seen == list(range(GROUPS))


def test_a_finished_run_says_so(tiny: Finished, jobs: Jobs):
    before = (tiny.folder / "summary.json").read_bytes()
    again = jobs.run()
    assert again.returncode == 0 and "finished already" in again.stdout
    assert (tiny.folder / "summary.json").read_bytes() == before


@pytest.mark.chaos
def test_a_killed_worker_changes_nothing(tiny: Finished, jobs: Jobs):
    process = jobs.start("run.name=worker-killed")
    folder = jobs.storage / "worker-killed"
    wait_for_step(folder, 5, process.pid)
    victim = next(p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in p.name()
                  or any("RayTrainWorker" in part for part in p.cmdline()))
    victim.kill()
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert json.loads((folder / "summary.json").read_text())["recoveries"] == 1
    assert_each_position_once(folder, 12)
    assert_same_weights(folder, tiny.folder)


@pytest.mark.chaos
def test_a_stopped_run_and_a_killed_driver_continue_by_the_same_command(tiny: Finished, jobs: Jobs):
    """Stopped at step 4 by max_steps, then killed, then run to the end: nothing of that is left in the weights."""
    buffers = shared_memory()
    stopped = jobs.run("run.name=staged", "train.max_steps=4")
    folder = jobs.storage / "staged"
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    process = jobs.start("run.name=staged")
    wait_for_step(folder, 7, process.pid)
    second = jobs.run("run.name=staged")
    assert second.returncode == 2 and f"pid {process.pid}" in second.stderr
    process.kill()
    process.communicate()
    done = jobs.run("run.name=staged")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    assert not list(folder.glob("ray-train-*")), "left by the killed driver"
    assert shared_memory() <= buffers, "left in the machine's memory"
    assert_each_position_once(folder, 12)
    assert [line["step"] for line in lines(folder / "metrics.jsonl") if "loss" in line] == list(range(1, 13))
    assert_same_weights(folder, tiny.folder)


@pytest.mark.chaos
def test_a_run_killed_before_its_last_file_is_completed(tiny: Finished, jobs: Jobs):
    """Nothing is left to train, the summary is there: export and report follow. A run may be moved to another name."""
    folder = jobs.storage / "moved"
    shutil.copytree(tiny.folder, folder, ignore=shutil.ignore_patterns("export", "report.html"))
    done = jobs.run("run.name=moved")
    assert done.returncode == 0, done.stderr
    assert "finished already" not in done.stdout and (folder / "report.html").exists()
    assert json.loads((folder / "summary.json").read_text())["steps"] == 12
    assert_each_position_once(folder, 12)
    assert_same_weights(folder, tiny.folder)


def test_nothing_is_written_to_the_users_ray_folder(tiny: Finished, jobs: Jobs):
    assert not (jobs.home / ".ray").exists()


def shared_memory() -> set[Path]:
    """DeepSpeed's buffers in memory."""
    return set(Path("/dev/shm").glob("deepspeed_*"))


def wait_for_step(folder: Path, step: int, pid: int, seconds: float = 200) -> None:
    """Wait until metrics.jsonl shows `step`; fail where the driver ends before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        os.kill(pid, 0)
        path = folder / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    pytest.fail(f"step {step} was not reached in {seconds} s")
