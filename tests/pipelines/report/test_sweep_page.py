"""The report of a sweep: whole, self-contained, and true to the trials."""
from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import cli
from pipelines.config import PretrainConfig
from pipelines.report.sweep_page import write_sweep_report
from pipelines.report.sweep_plots import height
from pipelines.training.data_pin import DataPin
from pipelines.tuning.importance import importance
from pipelines.tuning.results import write_results
from pipelines.tuning.space import Domain, read_space
from tests.pipelines.report.html_checks import check_page
from tests.pipelines.tuning.points import sweep_config, trial

SPACE = {"train.lr": {"loguniform": [1e-4, 1e-2]}, "model.abstract.carry": {"choice": ["reset", "detach"]},
         "train.clip": {"uniform": [1, 10]}}
DATA = DataPin("/data/store", 3, "")


def trials(count: int = 8) -> list:
    """Only the learning rate matters."""
    made = []
    for number in range(count):
        point = {"train.lr": 1e-4 * 100 ** (number / count), "model.abstract.carry": ("reset", "detach")[number % 2],
                 "train.clip": 1 + (7 * number) % 9}
        stopped = number % 4 == 1
        made.append(trial(number, point, "stopped" if stopped else "finished", (6,) if stopped else (6, 12),
                          (number / 10,) if stopped else (number / 10, number / 8), firing_rate=0.1 + number / 100))
    return made


def test_the_page_tells_all_trials_and_the_best(tmp_path: Path) -> None:
    config = sweep_config(SPACE)
    space = read_space(SPACE, config.shared(), [])
    made = [*trials(), replace(trial(8, trials()[0].point, "failed"), values={}, reports=(), why="<b>too hot</b>")]
    write_results(config, space, tmp_path, made, DATA)
    html = (tmp_path / "report.html").read_text()
    page = check_page(html)
    for each in made:
        assert each.name in page.text
    assert "The best trial is trial-0007" in " ".join(page.text.split())
    assert "<b>too hot" not in html and "<b>too hot" in page.text
    assert html.count("<svg") == 3 and "Importance of each hyperparameter" in html
    assert (tmp_path / "best.yaml").read_text() in page.text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_page_of_few_trials_is_whole_too(tmp_path: Path, count: int) -> None:
    config = sweep_config(SPACE)
    write_sweep_report(config, read_space(SPACE, config.shared(), []), tmp_path, [
        replace(each, status="stopped") for each in trials(count)])
    page = check_page((tmp_path / "report.html").read_text())
    assert "No trial has finished" in page.text


def test_two_measures_have_a_front(tmp_path: Path) -> None:
    config = sweep_config(SPACE, "tune.search=tpe", "tune.against=firing_rate")
    write_results(config, read_space(SPACE, config.shared(), []), tmp_path, trials(), DATA)
    html = (tmp_path / "report.html").read_text()
    check_page(html)
    front = re.search(r'aria-label="retrieval/mean_r5 against firing_rate\. ([^"]*)"', html)
    assert front is not None and "trial-0007" in front[1] and "trial-0000" in front[1]
    table = {row["trial"]: row["front"] for row in csv.DictReader((tmp_path / "trials.csv").read_text().splitlines())}
    assert {name for name, on_it in table.items() if on_it == "True"} == set(re.findall(r"trial-\d+", front[1]))


def test_names_on_a_front_do_not_cover_each_other(tmp_path: Path) -> None:
    """Of two trials that lie on one spot only one is named in the chart; the table names both."""
    config = sweep_config(SPACE, "tune.search=tpe", "tune.against=firing_rate")
    made = [*trials(), replace(trials()[7], name="trial-0008", values=trials()[7].values)]
    write_results(config, read_space(SPACE, config.shared(), []), tmp_path, made, DATA)
    html = (tmp_path / "report.html").read_text()
    drawn = re.findall(r"<text[^>]*>(trial-\d+)</text>", html)
    assert "trial-0000" in drawn and len({"trial-0007", "trial-0008"} & set(drawn)) == 1
    assert html.count('<th scope="row">trial-0008</th>') == 2


def test_the_best_yaml_names_the_version_of_the_data(tmp_path: Path) -> None:
    """So that it repeats the trial after the store has grown, from any folder."""
    config = sweep_config(SPACE, "data.store=relative/store")
    write_results(config, read_space(SPACE, config.shared(), []), tmp_path, trials(), DATA)
    best = cli.parse(PretrainConfig, ["--config", str(tmp_path / "best.yaml")], description="").config
    assert (best.train.data_version, best.data.store) == (DATA.version, DATA.store)


def test_the_hyperparameter_that_matters_is_the_most_important() -> None:
    config = sweep_config(SPACE)
    found = importance(read_space(SPACE, config.shared(), []), config.tune, trials(16))
    assert found is not None and (found.step, found.trials) == (6, 16)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert max(found.shares, key=lambda key: found.shares[key]) == "train.lr" and found.shares["train.lr"] > 0.7


def test_nothing_is_said_where_nothing_can_be_known() -> None:
    config = sweep_config(SPACE)
    space = read_space(SPACE, config.shared(), [])
    assert importance(space, config.tune, trials(3)) is None
    same = [replace(each, reports=trials()[0].reports) for each in trials()]
    assert importance(space, config.tune, same) is None


def test_axes_run_from_0_to_1() -> None:
    assert [height(Domain("choice", ("a", "b", "c")), value) for value in "abc"] == [0, 0.5, 1]
    assert height(Domain("loguniform", (1e-4, 1e-2)), 1e-3) == pytest.approx(0.5)
    assert height(Domain("uniform", (1, 3)), 2) == pytest.approx(0.5)
    assert height(Domain("choice", ("only",)), "only") == 0
