"""`jobs/pretrain.py` as a user runs it: what it writes, what a second launch does (tests/chaos kills it)."""
from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import Finished, Jobs, lines
from tests.e2e.outcome import STEP_GROUPS, assert_each_position_once
from tests.pipelines.report.html_checks import check_page

TASKS = ("itm", "mlm", "mvm", "itc", "stua")
GROUPS = 24  # 94 scenes in groups of 4, the last one padded


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


def test_nothing_is_written_to_the_users_ray_folder(tiny: Finished, jobs: Jobs):
    assert not (jobs.home / ".ray").exists()
