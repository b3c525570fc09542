"""Sweeps of other kinds with real trials: TPE with two measures, and the median rule."""
from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from pipelines.tuning.checks import legal
from pipelines.tuning.search import next_point
from pipelines.tuning.space import Point, identity, read_space
from pipelines.tuning.trials import read_trials
from tests.e2e import sweeps
from tests.e2e.conftest import Finished, Jobs, lines
from tests.pipelines.report.html_checks import check_page
from tests.pipelines.tuning.points import sweep_config

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
MEASURES = ("retrieval/mean_r5", "firing_rate")
TWO = ("tune.search=tpe", f"tune.metric={MEASURES[0]}", f"tune.against={MEASURES[1]}")
SPACE = {"train.lr": {"loguniform": [1e-4, 1e-2]}, "model.abstract.v_threshold": {"uniform": [0.5, 2.0]}}


def beaten(mine: dict[str, float], others: list[dict[str, float]]) -> bool:
    """Whether another one is as good in both measures, and not the same."""
    return any(other != mine and other[MEASURES[0]] >= mine[MEASURES[0]] and other[MEASURES[1]] <= mine[MEASURES[1]]
               for other in others)


def proposed(sweep: Path, name: str, search: str, folder: Path) -> Point | None:
    """The point that `search` names after what stands in trials.jsonl before trial `name`."""
    before = (sweep / "trials.jsonl").read_text().partition(f'{{"trial": "{name}", "event": "planned"')[0]
    (folder / "trials.jsonl").write_text(before)
    config = sweep_config(SPACE, *TWO, f"tune.search={search}", *(["tune.against="] if search == "random" else []))
    space = read_space(SPACE, config.shared(), [])
    return next_point(space, config.tune, 0, read_trials(folder, MEASURES), lambda point: legal(config, space, point))


def test_tpe_with_two_measures_leaves_a_pareto_front(jobs: Jobs, tiny: Finished, tmp_path: Path) -> None:
    """From a folder of the user's, with paths relative to it."""
    done = sweeps.run(jobs, "two", "tune.trials=5", "train.max_steps=3", "train.validate_every=0", *TWO,
                      "data.store=../store", "init=../runs/tiny", space=SPACE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "raylet" not in done.stdout + done.stderr and "arning" not in done.stdout + done.stderr
    sweep = jobs.storage / "two"
    assert len(list(sweep.glob("trials/*/init/model.safetensors"))) == 5
    ends = {name: end["values"] for name, end in sweeps.assert_each_trial_once(sweep, 5).items()}
    assert all(set(values) == set(MEASURES) for values in ends.values())
    front = {name for name, values in ends.items() if not beaten(values, list(ends.values()))}
    table = {row["trial"]: row["front"] for row in csv.DictReader((sweep / "trials.csv").read_text().splitlines())}
    assert {name for name, on_it in table.items() if on_it == "True"} == front
    html = (sweep / "report.html").read_text()
    told = re.search(r'aria-label="retrieval/mean_r5 against firing_rate\. ([^"]*)"', html)
    assert told is not None and set(re.findall(r"trial-\d+", told[1])) == front
    assert "No other finished trial beats one of these" in check_page(html).text
    said = next(line for line in done.stdout.splitlines() if line.startswith("Pareto front"))
    assert set(re.findall(r"trial-\d+", said)) >= front

    planned = {line["trial"]: line["point"] for line in lines(sweep / "trials.jsonl") if line["event"] == "planned"}
    last = planned["trial-0004"]
    assert identity(last) == identity(proposed(sweep, "trial-0004", "tpe", tmp_path) or {})
    assert identity(last) != identity(proposed(sweep, "trial-0004", "random", tmp_path) or {})


def test_the_median_rule_stops_a_bad_trial(jobs: Jobs) -> None:
    """A learning rate at which nothing can be learned comes last, when three others have got to the end."""
    done = sweeps.run(jobs, "median", "tune.search=grid", "tune.trials=0", "tune.scheduler=median",
                      "tune.metric=retrieval/mean_r5", "tune.concurrent=1", "train.max_steps=6",
                      "train.max_nonfinite=99",
                      space={"train.lr": {"grid": [1e-3, 2e-3, 3e-3, 100.0]}}, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = jobs.storage / "median"
    ends = sweeps.assert_each_trial_once(sweep, 4)
    assert [ends[name]["status"] for name in sorted(ends)] == 3 * ["finished"] + ["stopped"]
    bad = sweep / "trials" / "trial-0003"
    assert ends["trial-0003"]["step"] == 3 and "trial-0003 stopped at step 3" in done.stdout
    assert not (bad / "report.html").exists() and json.loads((bad / "lease.json").read_text())["released"]
    assert '<th scope="row">trial-0003</th><td>stopped</td>' in (sweep / "report.html").read_text()
