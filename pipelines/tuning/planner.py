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
from pipelines.tuning.models import Models
from pipelines.tuning.search import measures_of, next_point
from pipelines.tuning.space import Point, Space, with_values
from pipelines.tuning.trials import Journal, Trial, read_trials, run_of


class Planner:
    """The trials of a sweep, as trials.jsonl and the run directories have them, and the next one."""

    data: DataPin
    """The store and the version that all trials train on; set before the first trial is planned."""
    models: Models
    """What is known of the points' models."""

    def __init__(self, config: TuneConfig, space: Space, sweep: Path) -> None:
        self._config, self.space, self._sweep = config, space, sweep
        self.models = Models(space)
        self._taken: set[str] = set()

    def trials(self) -> list[Trial]:
        """All trials so far, in order."""
        return read_trials(self._sweep, measures_of(self._config.tune))

    def _next_point(self, trials: list[Trial], further: bool = False) -> Point | None:
        """None where no trial is due, or with `further` where the space holds no point beyond these."""
        settings = self._config.tune
        if settings.trials and len(trials) >= settings.trials and not further:
            return None
        return next_point(self.space, settings, self._config.run.seed, trials,
                          lambda point: legal(self._config, self.space, point) and not self.models.refusal(point))

    def done(self) -> bool:
        """Whether every trial has ended and no further one is due."""
        trials = self.trials()
        ended = bool(trials) and all(trial.status != "open" for trial in trials)
        return ended and self._next_point(trials) is None

    def rest(self) -> str:
        """What is to be said of further points when all trials have ended; empty where they are as many as wanted."""
        settings, trials = self._config.tune, self.trials()
        if len(trials) < settings.trials:
            return f"the space holds no more than these {len(trials)} points"
        if settings.search == "grid" and settings.trials and self._next_point(trials, further=True):
            return "the grid holds further points: raise tune.trials, or set it to 0 for all of them"
        return ""

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
        config = trial_config(self.space, self._sweep, trial, self.data)
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


def pinned_down(config: PretrainConfig, sweep: Path, data: DataPin) -> PretrainConfig:
    """The same training, whatever becomes of store and initial model, and from whatever folder it is started."""
    from pipelines.training.initial import initial_copy  # late: torch takes seconds to import

    store = {"data.store": data.store} if config.data.store else {}
    init = {"init": str(initial_copy(sweep).parent)} if config.init else {}
    return with_values(config, {"train.data_version": data.version, **store, **init})


def trial_config(space: Space, sweep: Path, trial: Trial, data: DataPin) -> PretrainConfig:
    """What `jobs/pretrain.py` gets for a trial."""
    found = pinned_down(space.configure(trial.point), sweep, data)
    return replace(found, run=replace(found.run, name=trial.name, storage=str(sweep / "trials"), takeover=False))


def configuration_of(sweep: Path, name: str) -> Path:
    """The file for `jobs/pretrain.py --config`."""
    return sweep / "trials" / f"{name}.yaml"
