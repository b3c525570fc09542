"""Turns points into trials: their names, configurations and shared groups, each written down before it starts."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.config import PretrainConfig
from pipelines.files import write_atomically
from pipelines.places import groups_folder
from pipelines.resume import text_of
from pipelines.store.table import ImageTextStore
from pipelines.training.data_pin import DataPin, pinned
from pipelines.tuning.checks import legal
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.search import measures_of, next_point
from pipelines.tuning.space import Point, Space
from pipelines.tuning.trials import Journal, Trial, read_trials, run_of


class Planner:
    """The trials of a sweep, as trials.jsonl and the run directories have them, and the next one."""

    data: DataPin
    """The store and the version that all trials train on; set before the first trial is planned."""

    def __init__(self, config: TuneConfig, space: Space, sweep: Path) -> None:
        self._config, self._space, self._sweep = config, space, sweep
        self._taken: set[str] = set()

    def trials(self) -> list[Trial]:
        """All trials so far, in order."""
        return read_trials(self._sweep, measures_of(self._config.tune))

    def _next_point(self, trials: list[Trial]) -> Point | None:
        settings = self._config.tune
        if settings.trials and len(trials) >= settings.trials:
            return None
        return next_point(self._space, settings, self._config.run.seed, trials,
                          lambda point: legal(self._config, self._space, point))

    def done(self) -> bool:
        """Whether every trial has ended and no further one is due."""
        trials = self.trials()
        return all(trial.status != "open" for trial in trials) and self._next_point(trials) is None

    def take(self) -> Trial | None:
        """The next trial to run in this launch: first those that an earlier one left open; None where all are through.

        Its configuration and groups are there, and trials.jsonl names it.
        """
        trials = self.trials()
        left = next((trial for trial in trials if trial.status == "open" and trial.name not in self._taken), None)
        trial = left or self._plan(trials)
        if trial:
            self._taken.add(trial.name)
            self._prepare(trial)
        return trial

    def _plan(self, trials: list[Trial]) -> Trial | None:
        point = self._next_point(trials)
        if point is None:
            return None
        trial = Trial(f"trial-{len(trials):04d}", point)
        Journal(self._sweep).planned(trial.name, point)
        return trial

    def _prepare(self, trial: Trial) -> None:
        """Write the configuration, pin the data, and build the groups where no earlier trial has needed the same."""
        config = trial_config(self._config, self._space, self._sweep, trial)
        store = ImageTextStore(self.data.store)
        groups = groups_folder(config, store.path, self.data.version)
        if not groups.exists():
            from pipelines.grouping.build import build_groups
            from pipelines.report.stages import StageProgress
            print(f"groups: building {groups}", flush=True)
            build_groups(config.groups, config.model.text, store, config.run.seed, groups, StageProgress(),
                         self.data.version)
        run = run_of(self._sweep, trial.name)
        run.mkdir(parents=True, exist_ok=True)
        pinned(run, store.path, self.data.version, groups)
        write_atomically(configuration_of(self._sweep, trial.name), text_of(config).encode())


def trial_config(config: TuneConfig, space: Space, sweep: Path, trial: Trial) -> PretrainConfig:
    """What `jobs/pretrain.py` gets for a trial."""
    found = space.configure(trial.point)
    return replace(found, run=replace(found.run, name=trial.name, storage=str(sweep / "trials"), takeover=False))


def configuration_of(sweep: Path, name: str) -> Path:
    """The file for `jobs/pretrain.py --config`."""
    return sweep / "trials" / f"{name}.yaml"
