"""report.html of a sweep: one page in the shell of a run's report, with nothing to load and no script."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipelines.files import write_atomically
from pipelines.report import sweep_plots
from pipelines.report.curves import Chart
from pipelines.report.summary import REPORT
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.importance import Importance, importance
from pipelines.tuning.objective import COSTS
from pipelines.tuning.space import Space
from pipelines.tuning.trials import Trial, best_of, front_of

TEMPLATE = "sweep.html.jinja"


def write_sweep_report(config: TuneConfig, space: Space, sweep: Path, trials: Sequence[Trial]) -> Path:
    """Write <sweep>/report.html and return its path."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
                            autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    page = templates.get_template(TEMPLATE).render(content(config, space, sweep, trials))
    write_atomically(sweep / REPORT, page.encode())
    return sweep / REPORT


def content(config: TuneConfig, space: Space, sweep: Path, trials: Sequence[Trial]) -> dict[str, Any]:
    """Everything that the template shows."""
    settings, chosen = config.tune, best_of(config.tune, trials)
    weights = importance(space, settings, trials)
    whole = sweep / "best.yaml"
    return {
        "name": config.run.name, "settings": settings, "trials": trials, "best": chosen, "space": space.domains,
        "counts": {status: sum(trial.status == status for trial in trials)
                   for status in ("finished", "stopped", "failed", "open")},
        "charts": charts(config, space, trials, chosen, weights) if chosen else [],
        "importance": weights, "front": front_of(settings, trials), "costs": COSTS,
        "failed": [trial for trial in trials if trial.why],
        "yaml": whole.read_text() if chosen else "", "sweep": str(sweep), "seed": config.run.seed,
    }


def charts(config: TuneConfig, space: Space, trials: Sequence[Trial], chosen: Trial,
           weights: Importance | None) -> dict[str, Chart]:
    """The charts by the section that they stand in."""
    settings = config.tune
    drawn = {"coordinates": sweep_plots.parallel_coordinates(space, trials, chosen, settings.metric),
             "curves": sweep_plots.learning_curves(trials, chosen, settings.metric)}
    if weights:
        drawn["importance"] = sweep_plots.importances(weights.shares)
    if some := front_of(settings, trials):
        drawn["front"] = sweep_plots.pareto(trials, some, settings.metric, settings.against)
    return drawn
