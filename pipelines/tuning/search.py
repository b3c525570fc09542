"""Which point comes next: a pure function of the space, the settings, the seed and the trials so far.

Nothing is kept between two calls, so that a sweep that was killed draws the points that it would have drawn.
"""
from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipelines.tuning.config import TuneSettings
from pipelines.tuning.objective import lower_is_better
from pipelines.tuning.space import Point, Space, identity
from pipelines.tuning.trials import Trial

TRIES = 2000
"""Draws in a row without a new legal point after which the space counts as used up."""

ASKS = 50
"""Points that TPE is asked for before one is drawn at random instead."""

Legal = Callable[[Point], bool]
"""Whether a point may become a trial."""


def next_point(space: Space, settings: TuneSettings, seed: int, trials: Sequence[Trial], legal: Legal) -> Point | None:
    """The point of trial number `len(trials)`; None where the space holds no further one. None comes twice.

    `legal` may take its time: it is not asked about points of trials, which were legal.
    """
    used = {identity(trial.point) for trial in trials}
    if settings.search == "tpe":
        return _tpe(space, settings, seed, trials, lambda point: identity(point) not in used and legal(point))

    def sound(point: Point) -> bool:
        return identity(point) in used or legal(point)
    points = _grid(space, sound) if settings.search == "grid" else _random(space, seed, sound)
    return next((point for point in points if identity(point) not in used), None)


def _grid(space: Space, legal: Legal) -> Iterator[Point]:
    return filter(legal, space.listed("grid"))


def _random(space: Space, seed: int, legal: Legal) -> Iterator[Point]:
    """Legal points, each once. Hyperparameters of kind `grid` go through all their values with each draw."""
    seen: set[str] = set()
    refused = 0
    for number in itertools.count():
        drawn = space.draw(random.Random(f"{seed}/{number}"))
        for values in space.listed("grid"):
            point = {**drawn, **values}
            if identity(point) in seen or not legal(point):
                refused += 1
                continue
            refused = 0
            seen.add(identity(point))
            yield point
        if refused > TRIES:
            return


def _tpe(space: Space, settings: TuneSettings, seed: int, trials: Sequence[Trial], legal: Legal) -> Point | None:
    """Optuna's TPE over the trials so far; draws that are no legal new point are drawn again, then drawn at random."""
    import optuna

    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), constant_liar=True, n_startup_trials=max(
        4, min(10, settings.trials // 3)))
    study = study_of(space, settings, trials, sampler)
    for _ in range(ASKS):
        asked = study.ask(distributions(space))
        point = decoded(space, asked.params)
        if legal(point):
            return point
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    return next(filter(legal, _random(space, seed, legal)), None)


def study_of(space: Space, settings: TuneSettings, trials: Sequence[Trial], sampler: Any = None) -> Any:
    """An optuna.Study of the trials: finished ones complete, stopped ones pruned, the others running; not failed ones.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    measures = measures_of(settings)
    study = optuna.create_study(sampler=sampler, directions=[
        "minimize" if lower_is_better(name) else "maximize" for name in measures])
    known = distributions(space)
    for trial in trials:
        values = [trial.values[name] for name in measures if name in trial.values]
        complete = trial.status == "finished" and len(values) == len(measures)
        if trial.status == "failed" or (trial.status == "finished" and not complete):
            continue
        pruned = trial.status == "stopped" and bool(values)
        study.add_trial(optuna.trial.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED if pruned else TrialState.RUNNING,
            params=encoded(space, trial.point), distributions=known, values=values if complete else None,
            intermediate_values={trial.step: values[0]} if pruned else None))
    return study


def measures_of(settings: TuneSettings) -> tuple[str, ...]:
    """The one or two measures of a sweep."""
    return (settings.metric, settings.against) if settings.against else (settings.metric,)


def distributions(space: Space) -> dict[str, Any]:
    """The space in Optuna's terms; values of a list are told by their JSON, since some are lists themselves."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for key, domain in space.domains.items():
        if domain.listed:
            found[key] = CategoricalDistribution([json.dumps(value) for value in domain.values])
        else:
            low, high = domain.values
            kind = IntDistribution if domain.whole else FloatDistribution
            found[key] = kind(low, high, log=domain.kind == "loguniform")
    return found


def encoded(space: Space, point: Point) -> dict[str, Any]:
    """A point as Optuna's parameters."""
    return {key: json.dumps(point[key]) if domain.listed else point[key] for key, domain in space.domains.items()}


def decoded(space: Space, params: dict[str, Any]) -> Point:
    """Optuna's parameters as a point."""
    return {key: next(value for value in domain.values if json.dumps(value) == params[key]) if domain.listed
            else params[key] for key, domain in space.domains.items()}
