"""trials.jsonl survives a crash at any byte; the best trial and the front against brute force."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.data_pin import DataPin
from pipelines.tuning.checks import checked_space
from pipelines.tuning.planner import Planner
from pipelines.tuning.trials import Journal, best, best_of, front, read_trials
from tests.pipelines.tuning.points import sweep_config, trial


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.planned("trial-0000", {"train.lr": 0.1, "model.abstract.channels": (1, 2)})
    journal.planned("trial-0001", {"train.lr": 0.2, "model.abstract.channels": (3,)})
    journal.ended(replace(trial(0, {}, "failed"), why="too hot"))
    first, second = read_trials(tmp_path)
    assert (first.status, first.why, first.point) == ("failed", "too hot", {
        "train.lr": 0.1, "model.abstract.channels": (1, 2)})
    assert (second.status, second.step, second.values) == ("open", 0, {})


def test_a_crash_at_any_byte_loses_at_most_the_line_that_was_being_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(3):
        journal.planned(f"trial-{number:04d}", {"train.lr": float(number)})
        journal.ended(trial(number, {}))
    whole = (tmp_path / "trials.jsonl").read_bytes()
    for size in range(len(whole) + 1):
        (tmp_path / "trials.jsonl").write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        Journal(tmp_path).planned("trial-0009", {"train.lr": 9.0})
        trials = read_trials(tmp_path)
        assert len(trials) == (complete + 1) // 2 + 1 and trials[-1].name == "trial-0009", size
        assert [each.status for each in trials[:-1]].count("finished") == complete // 2


def test_a_trial_ends_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.planned("trial-0000", {})
    journal.ended(trial(0, {}))
    journal.ended(trial(0, {}, "stopped", values=(0.8, 0.9)))
    assert [(each.status, each.values) for each in read_trials(tmp_path)] == [
        ("finished", {"retrieval/mean_r5": 0.2})]


def test_only_a_finished_trial_is_best_and_the_earlier_one_of_equals() -> None:
    trials = [trial(0, {}, values=(0, 0.5)), trial(1, {}, "stopped", values=(0, 0.9)), trial(2, {}, values=(0, 0.6)),
              trial(3, {}, values=(0, 0.6))]
    chosen = best(trials, "retrieval/mean_r5")
    assert chosen is not None and chosen.name == "trial-0002"
    assert best(trials[1:2], "retrieval/mean_r5") is None


def test_with_two_measures_the_best_is_on_the_front() -> None:
    """Of two that are equally good the cheaper one, though it came later."""
    trials = [trial(0, {}, values=(0, 0.6), firing_rate=0.2), trial(1, {}, values=(0, 0.6), firing_rate=0.1),
              trial(2, {}, values=(0, 0.5), firing_rate=0.01)]
    settings = sweep_config({"train.lr": {"choice": [0.1]}}, "tune.search=tpe", "tune.against=firing_rate").tune
    chosen = best_of(settings, trials)
    assert chosen is not None and chosen.name == "trial-0001"
    assert best_of(settings, []) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12), st.booleans())
def test_the_front_is_what_nobody_beats(scores: list[tuple[int, int]], lower: bool) -> None:
    trials = [trial(n, {}, values=(0, quality), cost=cost) for n, (quality, cost) in enumerate(scores)]
    expected = set()
    for n, (quality, cost) in enumerate(scores):
        beaten = False
        for other_quality, other_cost in scores:
            cheaper = other_cost <= cost if lower else other_cost >= cost
            beaten |= other_quality >= quality and cheaper and (other_quality, other_cost) != (quality, cost)
        expected |= set() if beaten else {f"trial-{n:04d}"}
    assert {each.name for each in front(trials, "retrieval/mean_r5", "cost", lower)} == expected


def test_the_trials_of_a_sweep_train_on_an_address_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "groups").mkdir()
    config = sweep_config({"train.lr": {"choice": [0.1, 0.2]}}, f"groups.path={tmp_path / 'groups'}")
    planner = Planner(config, checked_space(config), tmp_path)
    planner.data = DataPin("s3://bucket/store", 3, "")
    taken = planner.take()
    assert taken is not None
    pin = json.loads((tmp_path / "trials" / taken.name / "data.json").read_text())
    assert pin == {"store": "s3://bucket/store", "version": 3, "groups": str(tmp_path / "groups")}
