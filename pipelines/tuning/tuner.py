"""Ray Tune around the trials: who runs when, early stopping, second attempts; its state is thrown away with the launch.

What has become of a trial is read from trials.jsonl and its run directory alone, so there is no state of Tune's that
could be torn.
"""
from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, PlacementGroupFactory, RunConfig
from ray.tune.search import Searcher

from pipelines.tuning.checks import grace_steps, total_steps
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.planner import Planner, configuration_of
from pipelines.tuning.results import short
from pipelines.tuning.schedulers import scheduler
from pipelines.tuning.search import measures_of
from pipelines.tuning.trial_run import AS_THE_SWEEP, Launch, TrialRun
from pipelines.tuning.trials import Journal, Status, Trial, run_of

ATTEMPTS = 3
"""Further attempts of a trial in one launch after its actor or its driver has died."""
NOTHING = PlacementGroupFactory([{"memory": 1}])
"""What the actor that looks after a trial reserves: a CPU held by it would be missing for the workers and the feed."""
MANY = 1_000_000
"""The planner says when no trial is left."""


class Plan(Searcher):
    """Gives Tune the planner's trials."""

    def __init__(self, config: TuneConfig, planner: Planner, sweep: Path) -> None:
        super().__init__()
        self._config, self._planner, self._sweep = config, planner, sweep

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """Tune's own space and measure are not used."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial."""
        trial = self._planner.take()
        if trial is None:
            return str(Searcher.FINISHED)
        run = run_of(self._sweep, trial.name)
        variables = tuple((name, os.environ.get(name)) for name in AS_THE_SWEEP)
        return {"name": trial.name, "point": trial.point, "launch": Launch(
            str(configuration_of(self._sweep, trial.name)), str(run), str(run.with_suffix(".log")),
            measures_of(self._config.tune), variables)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The planner reads it from trials.jsonl."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep; Tune wants a file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class Record(Callback):
    """Writes ends into trials.jsonl and tells a person what happens."""

    def __init__(self, sweep: Path, measures: tuple[str, ...]) -> None:
        self._journal, self._measures = Journal(sweep), measures
        self._began = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial begins, or goes on."""
        self._say(trial, "starts: " + ", ".join(f"{key}={short(value)}" for key, value in
                                                trial.config["point"].items()))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A trial has measured something."""
        if "why" not in result:
            self._say(trial, f"step {result['step']}: " + self._values(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has ended: for good, unless a person can mend what ended it."""
        last = trial.last_result
        why = f": {last['why']}" if "why" in last else ""
        if why and not last["failed"]:
            self._say(trial, f"did not end{why}")
            return
        status: Status = "failed" if why else "finished" if last["final"] else "stopped"
        values = {name: last[name] for name in self._measures if name in last}
        self._journal.ended(Trial(trial.config["name"], {}, status, last["step"], values,
                                  round(last["time_total_s"], 1), last.get("why", "")))
        self._say(trial, f"{status} at step {last['step']}{why}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has died too often for this launch."""
        self._say(trial, f"did not end: see {trial.config['launch'].log}")

    def _values(self, result: dict[str, Any]) -> str:
        found = ", ".join(f"{name} {result[name]:.4g}" for name in self._measures if name in result)
        return found or f"no {' and no '.join(self._measures)}"

    def _say(self, trial: Any, what: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"[{minutes}:{seconds:02d}] {trial.config['name']} {what}", flush=True)


def in_words(config: TuneConfig, trials: Sequence[Trial]) -> str:
    """What this launch is about to do."""
    settings, ended = config.tune, sum(trial.status != "open" for trial in trials)
    stopping = "" if settings.scheduler == "none" else f", early stopping by {settings.scheduler}"
    return (f"sweep {config.run.name}: {f'{settings.trials} trials' if settings.trials else 'all points'} by "
            f"{settings.search} search, {settings.concurrent} at a time{stopping}; what counts is "
            f"{' against '.join(measures_of(settings))}" + (f"; {ended} trials have ended already" if ended else ""))


def run_trials(config: TuneConfig, planner: Planner, sweep: Path) -> None:
    """Run all open and further trials; returns when each has ended, or has died too often."""
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
                   "TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0",
                   "TUNE_MAX_PENDING_TRIALS_PG": str(config.tune.concurrent)}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what has become of a trial is ours to tell
    for left_by_a_killed_driver in sweep.glob("ray-tune-*"):
        shutil.rmtree(left_by_a_killed_driver, ignore_errors=True)
    trials, measures = planner.trials(), measures_of(config.tune)
    print(in_words(config, trials), flush=True)
    disposable = tempfile.mkdtemp(prefix="ray-tune-", dir=sweep)
    try:
        tune.Tuner(
            tune.with_resources(TrialRun, NOTHING),
            tune_config=tune.TuneConfig(
                search_alg=Plan(config, planner, sweep), num_samples=MANY, reuse_actors=False,
                scheduler=scheduler(config.tune, grace_steps(config), total_steps(config), trials),
                max_concurrent_trials=config.tune.concurrent,
                trial_name_creator=lambda trial: trial.config["name"],
                trial_dirname_creator=lambda trial: trial.config["name"]),
            run_config=RunConfig(name="tune", storage_path=disposable, verbose=0,
                                 failure_config=FailureConfig(max_failures=ATTEMPTS),
                                 checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                                 callbacks=[Record(sweep, measures)]),
        ).fit()
    finally:
        shutil.rmtree(disposable, ignore_errors=True)
