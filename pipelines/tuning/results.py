"""What a sweep leaves: best.yaml, trials.parquet and trials.csv, TensorBoard's HParams, report.html; and what it tells.
"""
from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.config import PretrainConfig
from pipelines.files import write_atomically
from pipelines.precision import recorded
from pipelines.report.summary import REPORT, program
from pipelines.resume import text_of
from pipelines.training.data_pin import DataPin
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.planner import pinned_down
from pipelines.tuning.search import measures_of
from pipelines.tuning.space import Space
from pipelines.tuning.trials import Trial, best_of, front_of, run_of

BEST = "best.yaml"
SHOWN = 10
COLUMNS = 4


def complete(sweep: Path) -> bool:
    """Whether a launch has written everything; the report comes last."""
    return (sweep / REPORT).exists()


def write_results(config: TuneConfig, space: Space, sweep: Path, trials: Sequence[Trial], data: DataPin) -> None:
    """Write all result files anew from the trials, which trained on `data`."""
    from pipelines.report.sweep_page import write_sweep_report  # late: matplotlib takes a second to import

    (sweep / REPORT).unlink(missing_ok=True)
    chosen = best_of(config.tune, trials)
    if chosen:
        write_atomically(sweep / BEST, text_of(best_config(config, space, sweep, chosen, data)).encode())
    write_tables(config, sweep, trials)
    write_hparams(config, sweep, trials)
    write_sweep_report(config, space, sweep, trials)


def best_config(config: TuneConfig, space: Space, sweep: Path, trial: Trial, data: DataPin) -> PretrainConfig:
    """The configuration that a trial trained with, under a name of its own, where the sweep's runs lie."""
    found = recorded(pinned_down(space.configure(trial.point), sweep, data), run_of(sweep, trial.name))
    return replace(found, run=replace(config.run, name=f"{config.run.name}-best", takeover=False))


def rows(config: TuneConfig, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A flat row a trial, with two measures whether it is on their Pareto front; lists are told as JSON."""
    measures = measures_of(config.tune)
    some = front_of(config.tune, trials)
    return [{"trial": trial.name, "status": trial.status, "step": trial.step, "seconds": trial.seconds,
             **{key: flat(trial.point[key]) for key in config.tune.space},
             **{name: trial.values.get(name) for name in measures},
             **({"front": trial in some} if config.tune.against else {}), "why": trial.why} for trial in trials]


def flat(value: Any) -> Any:
    """A value as it stands in a table."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def write_tables(config: TuneConfig, sweep: Path, trials: Sequence[Trial]) -> None:
    """trials.parquet and trials.csv: the same rows."""
    import pyarrow as pa

    from pipelines.store.schema import write_parquet

    table = rows(config, trials)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    write_atomically(sweep / "trials.csv", text.getvalue().encode())
    write_parquet(pa.Table.from_pylist(table), sweep / "trials.parquet")


def write_hparams(config: TuneConfig, sweep: Path, trials: Sequence[Trial]) -> None:
    """tensorboard/<trial>: each ended trial's hyperparameters and measures for TensorBoard's HParams."""
    from torch.utils.tensorboard import SummaryWriter

    folder = sweep / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    for trial in trials:
        if not trial.values:
            continue
        board = SummaryWriter(str(folder / trial.name))
        values = {key: flat(value) for key, value in trial.point.items()}
        board.add_hparams(values, {f"trial/{name}": value for name, value in trial.values.items()}, run_name=".",
                          global_step=trial.step)
        board.close()


def print_results(config: TuneConfig, sweep: Path, trials: Sequence[Trial]) -> None:
    """The best trials, the best configuration, and what to do with it."""
    console = Console(width=None if Console().is_terminal else 140)
    console.print(_table(config, trials))
    chosen = best_of(config.tune, trials)
    if chosen:
        changed = "\n".join(f"  {key}: {json.dumps(value)}" for key, value in chosen.point.items())
        console.print(f"best: {chosen.name}, {config.tune.metric} {chosen.values[config.tune.metric]:.4f}\n{changed}",
                      highlight=False)
        console.print(f"the whole configuration: {sweep / BEST}; train it again: {program('python')} jobs/pretrain.py "
                      f"--config {sweep / BEST}", soft_wrap=True)
    elif any(trial.status == "finished" for trial in trials):
        console.print(f"no best one: no finished trial has measured {' and '.join(measures_of(config.tune))}")
    if some := front_of(config.tune, trials):
        console.print(f"Pareto front, from the best {config.tune.metric} to the best {config.tune.against}: "
                      f"{', '.join(trial.name for trial in some)}; each is {sweep / 'trials'}/NAME.yaml",
                      soft_wrap=True)
    console.print(f"all trials: {sweep / REPORT} (for any browser), trials.csv and trials.parquet beside it; "
                  f"{program('tensorboard')} --logdir {sweep}", soft_wrap=True)


def _table(config: TuneConfig, trials: Sequence[Trial]) -> Table:
    measures = measures_of(config.tune)
    kinds = ("finished", "stopped", "failed", "open")
    count = {status: sum(trial.status == status for trial in trials) for status in kinds}
    table = Table(title=f"{config.run.name}: {len(trials)} trials, " + ", ".join(
        f"{number} {status}" for status, number in count.items() if number), title_justify="left")
    keys = list(config.tune.space) if len(config.tune.space) <= COLUMNS else []  # more do not fit: the report has them
    some = front_of(config.tune, trials)
    for column in ("trial", "status", "step", *measures, *(["front"] if some else []), *keys):
        table.add_column(column)
    ordered = sorted(trials, key=lambda trial: (trial.status != "finished",
                                                -trial.values.get(config.tune.metric, float("-inf"))))
    for trial in ordered[:SHOWN]:
        table.add_row(trial.name, trial.status, str(trial.step),
                      *(f"{trial.values[name]:.4f}" if name in trial.values else "" for name in measures),
                      *(["yes" if trial in some else ""] if some else []),
                      *(short(trial.point[key]) for key in keys))
    return table


def short(value: object) -> str:
    """A value as short as it can be told."""
    return f"{value:.3g}" if isinstance(value, float) else str(flat(value))
