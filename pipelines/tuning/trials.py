"""trials.jsonl: which trials there are and how they ended; with the trials' run directories the truth of a sweep."""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.training.run_directory import LineWriter, read_lines
from pipelines.tuning.config import TuneSettings
from pipelines.tuning.objective import Report, lower_is_better
from pipelines.tuning.objective import reports as reports_of

Status = Literal["open", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One point and what became of it; `open` until it has ended."""

    name: str
    point: dict[str, Any]
    status: Status = "open"
    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """The measures at the end."""
    seconds: float = 0.0
    why: str = ""
    """The error of a failed trial."""
    reports: tuple[Report, ...] = ()
    """All that it has measured, by its run directory."""


class Journal:
    """Append to trials.jsonl: a line where a trial is planned, before it starts, and one where it has ended."""

    def __init__(self, sweep: Path) -> None:
        self._path = sweep / "trials.jsonl"
        _drop_torn_line(self._path)

    def planned(self, name: str, point: dict[str, Any]) -> None:
        """A trial that is about to start."""
        self._write({"trial": name, "event": "planned", "point": point})

    def ended(self, trial: Trial) -> None:
        """A trial that has ended, for good."""
        self._write({"trial": trial.name, "event": "ended", "status": trial.status, "step": trial.step,
                     "values": trial.values, "seconds": trial.seconds, **({"why": trial.why} if trial.why else {})})

    def _write(self, line: dict[str, Any]) -> None:
        writer = LineWriter(self._path)
        writer.write(line)
        writer.close()


def _drop_torn_line(path: Path) -> None:
    """Cut off what a crash has left behind the last whole line, so that the next one does not continue it."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def read_trials(sweep: Path, measures: tuple[str, ...] = ()) -> list[Trial]:
    """All trials in the order in which they were planned, with what their run directories say of `measures`."""
    found: dict[str, Trial] = {}
    for line in read_lines(sweep / "trials.jsonl"):
        name = line["trial"]
        if line["event"] == "planned":
            found[name] = Trial(name, {key: tuple(value) if isinstance(value, list) else value
                                       for key, value in line["point"].items()})
        elif found[name].status == "open":
            found[name] = Trial(name, found[name].point, line["status"], line["step"], line["values"],
                                line["seconds"], line.get("why", ""))
    return [Trial(**{**vars(trial), "reports": tuple(reports_of(run_of(sweep, trial.name), measures))})
            for trial in found.values()]


def run_of(sweep: Path, name: str) -> Path:
    """The run directory of a trial."""
    return sweep / "trials" / name


def best(trials: Sequence[Trial], metric: str) -> Trial | None:
    """The finished trial with the highest value of `metric`, the earlier one of equals; None where none has finished.
    """
    finished = [trial for trial in trials if trial.status == "finished" and metric in trial.values]
    return max(finished, key=lambda trial: trial.values[metric], default=None)


def front(trials: Sequence[Trial], metric: str, against: str, lower: bool) -> list[Trial]:
    """The finished trials that no other one beats in both measures, by `metric`; `lower`: less of `against` is better.
    """
    sign = -1 if lower else 1
    finished = [trial for trial in trials if trial.status == "finished" and {metric, against} <= trial.values.keys()]
    scores = {trial.name: (trial.values[metric], sign * trial.values[against]) for trial in finished}

    def beaten(mine: tuple[float, float]) -> bool:
        return any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in scores.values())
    return sorted((trial for trial in finished if not beaten(scores[trial.name])), key=lambda t: -t.values[metric])


def front_of(settings: TuneSettings, trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front of a sweep; empty where it has one measure."""
    against = settings.against
    return front(trials, settings.metric, against, lower_is_better(against)) if against else []


def best_of(settings: TuneSettings, trials: Sequence[Trial]) -> Trial | None:
    """The trial that best.yaml holds: the best one, with two measures the end of their front; None: none has finished.
    """
    return next(iter(front_of(settings, trials)), None) if settings.against else best(trials, settings.metric)
