"""The page from made-up values: whole, self-contained, escaped, for finished, stopped and bare runs."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from jinja2 import UndefinedError

from pipelines.config import PretrainConfig
from pipelines.report.curves import draw
from pipelines.report.gallery import Gallery, examples
from pipelines.report.groups import ShownGroup
from pipelines.report.page import render
from pipelines.report.plots import USUAL_FIRING, health, held_out, losses, resumed_at
from pipelines.report.settings import settings
from pipelines.report.summary import headline, measured_on
from pipelines.report.targets import MEASURES, steps_to_target
from tests.pipelines.report.html_checks import check_page

HOSTILE = "</style><script>alert(1)</script><img src=https://example.org/x>"
LINES: list[dict[str, Any]] = [
    *({"step": step, "loss": 9.0 / step, "loss/itc": 1.0, "loss/itm": 0.7, "lr": 1e-3, "grad_norm": 2.0,
       "samples_per_s": 50.0, "data_wait_share": 0.01, "firing_rate/abstract.neurons1": 0.1} for step in range(1, 9)),
    {"step": 4, "retrieval/i2t_r5": 0.55, "itm/accuracy_random": 0.6, "itm/accuracy_hard": 0.5}]
STARTS = [{"attempt": 1, "step": 0, "world_size": 2}, {"attempt": 2, "step": 3, "world_size": 1}]


def summary(**changes: Any) -> dict[str, Any]:
    return {"name": "made-up", "status": "finished", "steps": 8, "schedule_steps": 8, "samples": 1024, "seconds": 60.0,
            "world_size": 2, "metrics": {"retrieval/i2t_r5": 0.625, "itm/accuracy_random": 0.7, "mvm/explained": -0.5},
            "chance": {"retrieval/i2t_r5": 0.125, "itm/accuracy_random": 0.5},
            "steps_to_target": steps_to_target(LINES, (0.5, 0.9)), "firing_rates": {"abstract.neurons1": 0.1},
            "recoveries": 1, "quarantined": {"undecodable": 3}, "versions": {"torch": "2.11.0"}, **changes}


def values(lines: list[dict[str, Any]] = LINES, caption: str = "a cat", **changes: Any) -> dict[str, Any]:
    told = summary(**changes)
    match = torch.eye(8, dtype=torch.bool)
    scores = match * 0.8 + torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    hits, misses, first = examples(scores, match, 4)
    pictures, captions = dict.fromkeys(range(8), "data:image/webp;base64,AAAA"), dict.fromkeys(range(8), caption)
    rows = settings(PretrainConfig())
    return {
        "summary": told, "results": headline(told), "captions": 8, "validation_samples": 256,
        "measured_on": measured_on(told),
        "losses": [draw(plot) for plot in losses(lines, resumed_at(STARTS))],
        "held_out": [draw(plot) for plot in held_out(lines, told)],
        "health": [draw(plot) for plot in health(lines, PretrainConfig(), resumed_at(STARTS))],
        "usual_firing": USUAL_FIRING, "targets": told["steps_to_target"], "measures": MEASURES, "shown": 5,
        "galleries": [Gallery(f"g{way}", way, hits, misses, 8, first, pictures, captions, captions)
                      for way in (True, False)],
        "groups": {"most alike": [ShownGroup(3, 0.9, ("data:image/webp;base64,AAAA", ""), (caption, ""),
                                             (False, True))]},
        "manifest": {"groups": 1372, "size": 2, "method": "similar", "data_version": 1, "embedding": "captions",
                     "quality": {"in_group": 0.71, "random": 0.22, "bound": 0.78, "clashes": 0}},
        "settings": rows, "changed": rows[:2], "starts": STARTS, "images_a_step": 128, "run": "/somewhere/made-up"}


def test_a_finished_run_is_told_whole():
    page = check_page(render(values()))
    for told in ("made-up", "finished", "62.5%", "12.5%", "0.625", "-0.500", "none", "8 of 8 steps", "1,024 images",
                 "1,372", "0.710", "3 × undecodable", "attempt 2 from step 3 on 1 worker", "train.lr", "2.11.0",
                 "(copy, to fill up)", "damaged picture", "abstract.neurons1"):
        assert told in page.text, told
    charts = [attributes["aria-label"] for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert any("Firing rates" in words and "3.0% to 20.0%" in words for words in charts)
    assert len(charts) == 3 + 3 + 5


def test_what_captions_say_stays_text():
    page = check_page(render(values(caption=HOSTILE)).replace("https://example.org", ""))
    assert page.text.count("alert(1)") > 10


def test_a_stopped_run_says_how_to_go_on():
    stopped, finished = check_page(render(values(status="stopped"))).text, check_page(render(values())).text
    assert "goes on" in stopped and "not yet" in stopped
    assert "goes on" not in finished and "not yet" not in finished


def test_a_result_of_some_samples_says_so():
    whole, some = (check_page(render(values(measured_samples=most))).text for most in (0, 256))
    told = "on at most 256 samples of a split (evaluation.final_samples)"
    assert told not in whole and told in some
    assert "final evaluation, on all samples" in whole and "final evaluation, on at most 256" in some


def test_a_run_without_validation_spikes_or_bad_samples():
    bare = values([line for line in LINES if "loss" in line], steps_to_target={}, firing_rates={}, quarantined={},
                  recoveries=0) | {"groups": {}, "galleries": []}
    page = check_page(render(bare))
    assert "No validation during training" in page.text and "no spiking layer" in page.text and "None." in page.text


def test_a_missing_value_is_an_error_and_no_hole():
    told = values()
    del told["manifest"]["method"]
    with pytest.raises(UndefinedError):
        render(told)
