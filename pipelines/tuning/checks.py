"""What is wrong with a sweep before anything starts: its space, its measures, its early stopping, its trials' CPUs."""
from __future__ import annotations

import difflib
import random

from pipelines.errors import UserError
from pipelines.finding import Finding
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.objective import COSTS, MEAN, RECALLS, measured
from pipelines.tuning.space import Point, Space, read_space

MEASURES = (MEAN, *(f"{split}/{recall}" for split in ("retrieval", "retrieval_unseen") for recall in RECALLS),
            "itm/accuracy_random", "itm/accuracy_hard", "mlm/accuracy_right_image", "mvm/explained", "stua/a2t_r5")
DRAWS = 500


def checked_space(config: TuneConfig) -> Space:
    """The search space; UserError with everything that is wrong with the sweep's settings, a line each."""
    mistakes: list[str] = []
    space = read_space(config.tune.space, config.shared(), mistakes)
    mistakes += [*_search(config, space), *_measures(config, space), *_stopping(config)]
    if config.groups.path and any(key.startswith("groups.") for key in config.tune.space):
        mistakes.append(f"groups.path={config.groups.path} fixes the groups, so no groups.* can be searched: leave "
                        "groups.path out")
    if mistakes:
        raise UserError("\n".join(" ".join(mistake.split()) for mistake in mistakes))
    return space


def legal(config: TuneConfig, space: Space, point: Point) -> bool:
    """Whether a point may become a trial: it is a configuration, and such a run measures what the sweep looks at."""
    return not space.refusal(point) and _held_out(config) <= measured(space.configure(point))


def _held_out(config: TuneConfig) -> set[str]:
    return {config.tune.metric, config.tune.against} - {"", *COSTS}


def _search(config: TuneConfig, space: Space) -> list[str]:
    kinds = {key: domain.kind for key, domain in space.domains.items()}
    if config.tune.search == "grid":
        return [f"tune.space.{key}: tune.search=grid needs {{grid: [...]}}, not {kind}"
                for key, kind in kinds.items() if kind != "grid"]
    if config.tune.search == "tpe":
        return [f"tune.space.{key}: a grid needs tune.search=grid or random; for tpe write {{choice: [...]}}"
                for key, kind in kinds.items() if kind == "grid"]
    return []


def _measures(config: TuneConfig, space: Space) -> list[str]:
    found = []
    for key, known in (("metric", MEASURES), ("against", (*COSTS, *MEASURES))):
        name = getattr(config.tune, key)
        if name and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            found.append(f"tune.{key}={name}: no such measure; did you mean {near}? There are {', '.join(known)}")
    if config.tune.against == config.tune.metric:
        found.append(f"tune.against={config.tune.against}: name another measure than tune.metric")
    rng = random.Random(0)
    if not found and space.domains and not any(legal(config, space, space.draw(rng)) for _ in range(DRAWS)):
        missing = sorted(_held_out(config) - measured(config.shared())) or sorted(_held_out(config))
        found.append(f"tune: no trial would report {' and '.join(missing)}: give its task a weight (for "
                     "retrieval_unseen name evaluation.unseen_split, for stua and mvm keep the summary ratio), or name "
                     "another measure")
    return found


def _stopping(config: TuneConfig) -> list[str]:
    if config.tune.scheduler == "none":
        return []
    name, every, total = f"tune.scheduler={config.tune.scheduler}", config.train.validate_every, total_steps(config)
    if not total:
        return [f"{name} needs to know a trial's length: set train.schedule_steps"]
    if not 0 < every < total:
        return [f"{name} judges trials by their validations: train.validate_every={every} gives none before the last "
                f"of {total} steps; lower it"]
    if grace_steps(config) >= total:
        return [f"tune.grace_steps={config.tune.grace_steps} is not below the {total} steps of a trial, so none would "
                "stop: lower it"]
    return []


def incomparable(config: TuneConfig) -> str:
    """A warning where a trial's last measure is of other samples than its earlier ones; else nothing."""
    evaluation = config.evaluation
    if evaluation.final_samples == evaluation.validate_samples or not (config.train.validate_every and
                                                                       _held_out(config)):
        return ""
    return (f"a trial's last value is measured on other samples than its validations: evaluation.final_samples="
            f"{evaluation.validate_samples} makes curves and ends comparable")


def total_steps(config: TuneConfig) -> int:
    """Steps of a whole trial; 0 where they follow from the epochs."""
    train = config.train
    return min(train.max_steps or train.schedule_steps, train.schedule_steps)


def grace_steps(config: TuneConfig) -> int:
    """Steps before a trial may be stopped."""
    return config.tune.grace_steps or config.train.validate_every


def room(config: TuneConfig, cpus: float, gpus: int, where: str) -> Finding:
    """CPUs or GPUs for all trials that train at the same time, and a CPU for their feeds."""
    trials, scaling = config.tune.concurrent, config.scaling
    held = trials * scaling.fewest * scaling.cpus_per_worker
    if held + 1 > cpus:
        return Finding("CPUs", False, f"tune.concurrent={trials} trials x scaling.workers={scaling.fewest} x "
                       f"scaling.cpus_per_worker={scaling.cpus_per_worker:g} hold {held:g} of {where} {cpus:g} CPUs "
                       "and leave Ray Data less than one", "lower one of them")
    if scaling.device == "gpu" and trials * scaling.fewest > gpus:
        return Finding("GPUs", False, f"tune.concurrent={trials} trials x scaling.workers={scaling.fewest} need "
                       f"{trials * scaling.fewest} GPUs; there are {gpus}", "lower one of them")
    return Finding("CPUs", True, f"trials hold {held:g} of {where} {cpus:g} CPUs")
