"""What a run's own files say of the measures, at validations and at its end."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.tuning.objective import Report, measured, reports
from tests.pipelines.tuning.points import sweep_config

MEASURES = ("retrieval/mean_r5", "firing_rate", "step_seconds")


def run_of(folder: Path, finished: bool) -> Path:
    """Steps, two validations, and an end at step 6."""
    found = {"retrieval/i2t_r5": 0.2, "retrieval/t2i_r5": 0.4, "held_out_firing_rate/a": 0.1,
             "held_out_firing_rate/b": 0.3}
    lines = [{"step": 1, "loss": 3.0, "firing_rate/a": 0.9}, {"step": 3, **found}, {"step": 6, **found}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"steps": 6, "seconds": 12.0, "metrics": {"retrieval/i2t_r5": 0.5, "retrieval/t2i_r5": 0.7},
               "firing_rates": {"a": 0.02, "b": 0.04}}
    (folder / "summary.json").write_text(json.dumps(summary))
    if finished:
        (folder / "report.html").touch()
    return folder


def test_validations_count_until_the_final_evaluation_takes_the_place_of_the_last(tmp_path: Path) -> None:
    validation = {"retrieval/mean_r5": pytest.approx(0.3), "firing_rate": pytest.approx(0.2)}
    end = {"retrieval/mean_r5": pytest.approx(0.6), "firing_rate": pytest.approx(0.03), "step_seconds": 2.0}
    assert reports(run_of(tmp_path, finished=False), MEASURES) == [Report(3, validation), Report(6, validation)]
    assert reports(run_of(tmp_path, finished=True), MEASURES) == [Report(3, validation), Report(6, end, final=True)]


def test_a_run_that_has_not_begun_has_measured_nothing(tmp_path: Path) -> None:
    assert reports(tmp_path / "nowhere", MEASURES) == []


@pytest.mark.parametrize(("keys", "without"), [
    (["tasks.itc.weight=0"], {"retrieval/mean_r5", "retrieval/i2t_r5"}),
    (["tasks.itm.weight=0"], {"itm/accuracy_hard"}),
    (["model.summary_ratio.mode=fixed", "model.summary_ratio.value=0"], {"stua/a2t_r5", "mvm/explained"}),
    (["tasks.mvm.target=dictionary"], {"mvm/explained"})])
def test_what_a_run_does_not_train_it_does_not_measure(keys: list[str], without: set[str]) -> None:
    assert without <= measured(sweep_config({}).shared())
    assert not without & measured(sweep_config({}, *keys).shared())
