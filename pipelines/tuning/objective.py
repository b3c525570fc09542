"""What a trial is judged by: names of measures, their direction, and their values in a run's own files."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import PretrainConfig
from pipelines.report.summary import finished_summary
from pipelines.training.run_directory import read_lines

MEAN = "retrieval/mean_r5"
COSTS = {"firing_rate": "mean held-out firing rate over the spiking layers",
         "step_seconds": "seconds of a training step, validations and checkpoints included"}
"""Measures of which less is better."""
RECALLS = tuple(f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))


@dataclass(frozen=True)
class Report:
    """What a trial measured after `step` steps; `final` is the evaluation that ends a run."""

    step: int
    values: dict[str, float]
    final: bool = False


def lower_is_better(name: str) -> bool:
    """Whether a measure is a cost."""
    return name in COSTS


def measured(config: PretrainConfig) -> set[str]:
    """The held-out measures of every validation of such a run."""
    tasks, found = config.tasks, set[str]()
    if tasks.itc.weight > 0:
        found |= {MEAN, *(f"retrieval/{recall}" for recall in RECALLS)}
        if config.evaluation.unseen_split:
            found |= {f"retrieval_unseen/{recall}" for recall in RECALLS}
    if tasks.itm.weight > 0:
        found |= {"itm/accuracy_random", "itm/accuracy_hard"}
    if tasks.mlm.weight > 0:
        found |= {"mlm/accuracy_right_image", "mlm/accuracy_wrong_image"}
    if tasks.mvm.weight > 0 and tasks.mvm.target == "spikes" and not config.model.summary_ratio.off:
        found.add("mvm/explained")
    if tasks.stua.weight > 0 and not config.model.summary_ratio.off:
        found.add("stua/a2t_r5")
    return found


def reports(run: Path, measures: tuple[str, ...]) -> list[Report]:
    """What the run has measured so far, in order: its validations, and its final evaluation where it has ended."""
    found = []
    for line in read_lines(run / "metrics.jsonl"):
        if "loss" not in line and (values := values_of(line, measures)):
            found.append(Report(line["step"], values))
    summary = finished_summary(run)
    if summary:
        rates = {f"held_out_firing_rate/{layer}": rate for layer, rate in summary["firing_rates"].items()}
        seconds = {"step_seconds": summary["seconds"] / summary["steps"]}
        found = [report for report in found if report.step < summary["steps"]]
        found.append(Report(summary["steps"], values_of({**summary["metrics"], **rates, **seconds}, measures), True))
    return found


def values_of(line: Mapping[str, Any], measures: tuple[str, ...]) -> dict[str, float]:
    """Those of `measures` that a line of metrics holds."""
    found: dict[str, float] = {}
    for name in measures:
        if name in line:
            found[name] = line[name]
        elif name == MEAN and "retrieval/i2t_r5" in line:
            found[name] = (line["retrieval/i2t_r5"] + line["retrieval/t2i_r5"]) / 2
        elif name == "firing_rate" and any(key.startswith(("retrieval/", "itm/", "mlm/")) for key in line):
            rates = [value for key, value in line.items() if key.startswith("held_out_firing_rate/")]
            found[name] = sum(rates) / len(rates) if rates else 0.0
    return found
