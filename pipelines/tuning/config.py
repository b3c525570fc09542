"""The settings of `jobs/tune.py`: those of pre-training, which all trials share, and the sweep's own (no ray or torch).
"""
from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ashnets.config import require
from pipelines.config import PretrainConfig


@dataclass(frozen=True)
class TuneSettings:
    """The sweep: what is searched, how, and by which measure."""

    space: dict[str, Any] = field(default_factory=dict)
    """Hyperparameter -> {choice: [...]}, {grid: [...]}, {uniform: [low, high]} or {loguniform: [low, high]}."""
    search: Literal["random", "grid", "tpe"] = "random"
    """Where points come from: drawn at random, the whole grid, or Optuna's TPE, which learns from finished trials."""
    trials: int = 8
    """Trials of the whole sweep (may be raised later); grid: at most so many of the grid's points, 0: all of them."""
    concurrent: int = 1
    """Trials that train at the same time."""
    metric: str = "retrieval/mean_r5"
    """Held-out measure that counts, higher is better; mean_r5 is the mean of i2t_r5 and t2i_r5."""
    against: str = ""
    """Second measure, for a Pareto front: firing_rate or step_seconds (less is better), a held-out one, or empty."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """Which trials stop early: none, those outside the best 1/reduction at a rung, those below the median."""
    grace_steps: int = 0
    """Steps before a trial may be stopped (ASHA: the first rung); 0: the first validation."""
    reduction: int = 3
    """ASHA: one of so many trials passes a rung, and rungs lie at grace_steps times its powers."""

    def __post_init__(self) -> None:
        require(self.trials >= (0 if self.search == "grid" else 1), "tune.trials", self.trials,
                "at least 1 (0, for all points, only with tune.search=grid)")
        require(self.concurrent >= 1, "tune.concurrent", self.concurrent, "at least 1")
        require(self.grace_steps >= 0, "tune.grace_steps", self.grace_steps, "0 or more")
        require(self.reduction >= 2, "tune.reduction", self.reduction, "at least 2")
        require(not self.against or self.search == "tpe", "tune.against", self.against,
                "two measures need tune.search=tpe")
        require(not self.against or self.scheduler == "none", "tune.scheduler", self.scheduler,
                f"none where tune.against={self.against}: early stopping compares by one measure")


@dataclass(frozen=True)
class TuneConfig(PretrainConfig):
    """Everything `jobs/tune.py` takes: the keys of `jobs/pretrain.py` hold for every trial, `run` names the sweep."""

    tune: TuneSettings = field(default_factory=TuneSettings)

    def shared(self) -> PretrainConfig:
        """What the trials have in common, as pre-training takes it."""
        return PretrainConfig(**{known.name: getattr(self, known.name) for known in fields(PretrainConfig)})
