"""Early stopping by Ray Tune's schedulers, on our own `step`, with what earlier launches of the sweep have seen.

Tune's own state is thrown away with each launch: a scheduler is told the reports of all trials again, and decides
nothing anew that was decided then.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from pipelines.tuning.config import TuneSettings
from pipelines.tuning.trials import Trial


class Told:
    """A trial as far as a scheduler looks at trials: the same one in every launch, whatever Tune makes of it."""

    def __init__(self, name: str) -> None:
        self.trial_id = name
        self.config = {"name": name}


class _Remembering:
    """Mixed into a scheduler of Tune: each step of a trial counts once, whoever tells it, in whichever launch."""

    _known: dict[str, tuple[Told, int]]
    """Each trial by its name, and its last step that was told."""

    def remember(self, trials: Sequence[Trial]) -> None:
        """Tell the reports of earlier launches, about which was decided then."""
        self._known = {}
        for trial in trials:
            told = self._told(Told(trial.name))
            for report in trial.reports:
                self.tell(told, {"step": report.step, **report.values})
                self._known[trial.name] = (told, report.step)

    def _told(self, trial: Any) -> Told:
        name = trial.config["name"]
        if name not in self._known:
            told = Told(name)
            self._known[name] = (told, -1)
            super().on_trial_add(None, told)  # type: ignore[misc]
        return self._known[name][0]

    def tell(self, told: Told, result: dict[str, Any]) -> None:
        """Take in a report of an earlier launch."""
        super().on_trial_result(None, told, result)  # type: ignore[misc]

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """A trial has come, maybe with a past."""
        self._told(trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What to do with the trial."""
        told, step = self._told(trial), result["step"]
        if step <= self._known[told.trial_id][1]:
            return str(TrialScheduler.CONTINUE)
        self._known[told.trial_id] = (told, step)
        return str(super().on_trial_result(controller, told, result))  # type: ignore[misc]

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing: the last result was told already, and that of a failed trial holds no measure."""

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        """Nothing: what the trial has measured still counts."""


class Asha(_Remembering, ASHAScheduler):
    """Asynchronous successive halving."""


class Median(_Remembering, MedianStoppingRule):
    """Stops what is worse at its best than the median of the others' means."""

    def tell(self, told: Told, result: dict[str, Any]) -> None:
        """Take in a report of an earlier launch, without a decision: a trial cannot be stopped twice."""
        self._results[told].append(result)

    def _on_insufficient_samples(self, controller: Any, trial: Any, time: float) -> str:
        return str(TrialScheduler.CONTINUE)  # Tune would pause the trial: starting it again costs more than training on


def scheduler(settings: TuneSettings, grace: int, total: int, trials: Sequence[Trial]) -> FIFOScheduler:
    """The scheduler of the settings: trials run `total` steps, and none is stopped before step `grace`."""
    judged: dict[str, Any] = {"time_attr": "step", "metric": settings.metric, "mode": "max", "grace_period": grace}
    if settings.scheduler == "none":
        return FIFOScheduler()
    made = (Asha(max_t=total, reduction_factor=settings.reduction, **judged) if settings.scheduler == "asha"
            else Median(**judged))
    made.remember(trials)
    return made
