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
    """A trial of an earlier launch, as far as a scheduler looks at trials."""

    def __init__(self, name: str) -> None:
        self.trial_id = name
        self.config = {"name": name}


class _Remembering:
    """Mixed into a scheduler of Tune: each step of a trial counts once, whoever tells it, in whichever launch."""

    _known: dict[str, Trial]
    _last: dict[str, int]

    def remember(self, trials: Sequence[Trial]) -> None:
        """Tell the reports of earlier launches: of ended trials now, of those that go on when Tune adds them."""
        self._known, self._last = {trial.name: trial for trial in trials}, {}
        for trial in trials:
            if trial.status in ("finished", "stopped"):
                self.on_trial_add(None, Told(trial.name))

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """A trial has come, maybe with a past."""
        super().on_trial_add(controller, trial)  # type: ignore[misc]
        known = self._known.get(trial.config["name"])
        for report in known.reports if known else ():
            self._last[trial.config["name"]] = report.step
            self.tell(trial, {"step": report.step, **report.values})

    def tell(self, trial: Any, result: dict[str, Any]) -> None:
        """Take in a report of an earlier launch, about which was decided then."""
        super().on_trial_result(None, trial, result)  # type: ignore[misc]

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What to do with the trial."""
        name, step = trial.config["name"], result["step"]
        if step <= self._last.get(name, -1):
            return str(TrialScheduler.CONTINUE)
        self._last[name] = step
        return str(super().on_trial_result(controller, trial, result))  # type: ignore[misc]


class Asha(_Remembering, ASHAScheduler):
    """Asynchronous successive halving."""


class Median(_Remembering, MedianStoppingRule):
    """Stops what is worse at its best than the median of the others' means."""

    def tell(self, trial: Any, result: dict[str, Any]) -> None:
        """Take in a report of an earlier launch: only what a trial has measured counts, not when the others came."""
        self._results[trial].append(result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing: the last result was told already, and that of a failed trial holds no measure."""

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
