"""Small sweeps for the tests: configurations, spaces and trials without training."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs import cli
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.objective import Report
from pipelines.tuning.trials import Trial

TINY = Path(__file__).resolve().parents[2] / "e2e" / "tiny.yaml"
CONDITIONAL = {"model.abstract.window": {"choice": ["per_sample", "shared"]},
               "model.abstract.time_steps": {"choice": [2, 3, 4, 6]}, "groups.size": {"choice": [2, 3, 4]}}


def sweep_config(space: dict[str, Any], *keys: str) -> TuneConfig:
    """tests/e2e/tiny.yaml with a sweep over `space`."""
    return cli.parse(TuneConfig, ["--config", str(TINY), f"tune.space={json.dumps(space)}", *keys],
                     description="").config


def trial(number: int, point: dict[str, Any], status: Any = "finished", steps: tuple[int, ...] = (6, 12),
          values: tuple[float, ...] = (0.1, 0.2), metric: str = "retrieval/mean_r5", **others: float) -> Trial:
    """A trial that measured `values` at `steps`, and `others` at the end."""
    reports = tuple(Report(step, {metric: value}) for step, value in zip(steps, values, strict=True))
    return Trial(f"trial-{number:04d}", point, status, steps[-1], {metric: values[-1], **others}, 1.0,
                 reports=reports)
