"""How much of the difference between trials each hyperparameter explains, by Optuna, among trials of equal length."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.tuning.config import TuneSettings
from pipelines.tuning.search import study_of
from pipelines.tuning.space import Space
from pipelines.tuning.trials import Trial

FEWEST = 4
"""Below so many trials shares would say nothing."""


@dataclass(frozen=True)
class Importance:
    """Shares that add up to 1, by hyperparameter, from the values of `trials` trials at `step`."""

    shares: dict[str, float]
    step: int
    trials: int


def importance(space: Space, settings: TuneSettings, trials: Sequence[Trial]) -> Importance | None:
    """None where fewer than FEWEST trials have measured something, or all have measured the same.

    Trials that were stopped early are compared with the others at the last step that all of them have reached, which
    is fairer than to leave them out, or to hold an early value against a late one.
    """
    metric = settings.metric
    told = [trial for trial in trials if any(metric in report.values for report in trial.reports)]
    if len(told) < FEWEST:
        return None
    step = min(max(report.step for report in trial.reports if metric in report.values) for trial in told)
    at = [replace(trial, status="finished", values={metric: [report.values[metric] for report in trial.reports
                                                             if metric in report.values and report.step <= step][-1]})
          for trial in told]
    if len({trial.values[metric] for trial in at}) == 1:
        return None
    import optuna

    study = study_of(space, replace(settings, against=""), at)
    shares = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    return Importance(dict(shares), step, len(told))
