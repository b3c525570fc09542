"""The end of a run in figures: written to summary.json, told to a person."""
from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

from pipelines.files import write_atomically
from pipelines.report.targets import MEASURES, steps_to_target
from pipelines.training import checkpoint
from pipelines.training.job import TrainingJob
from pipelines.training.run_directory import read_lines

if TYPE_CHECKING:
    from pipelines.evaluation.final import Final

REPORT = "report.html"
MEANING = {
    "retrieval/i2t_r5": "held-out samples: a right caption among the best 5 of all",
    "retrieval/t2i_r5": "held-out samples: the right picture among the best 5 of all",
    "retrieval_unseen/i2t_r5": "things never seen in training: right name in the best 5",
    "retrieval_unseen/t2i_r5": "things never seen in training: right picture in the best 5",
    "zero_shot/top1": "things never seen in training: right category by its name",
    "retrieval_reranked/i2t_r1": "right caption first after re-ranking by the fusion, one an image",
    "retrieval_reranked/t2i_r1": "right picture first after re-ranking by the fusion, one caption an image",
    "stua/a2t_r5": "captions found by the spiking feature alone",
    "itm/accuracy_random": "matched or not, against random captions",
    "itm/accuracy_hard": "matched or not, against the most similar wrong caption",
    "mlm/accuracy_right_image": "masked words guessed with the right image (chance: with a wrong one)",
    "mvm/explained": "share of the spike code explained beyond mean rates",
}


def finished_summary(run: Path) -> dict[str, Any] | None:
    """summary.json where a launch has ended well, else None.

    The report is what a launch writes last; one of an earlier launch goes before the new summary is written.
    """
    return read_summary(run) if (run / REPORT).exists() else None


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json where there is one, also while its launch is still writing the export and the report."""
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_summary(job: TrainingJob, final: Final) -> dict[str, Any]:
    """Write summary.json and return it."""
    found = checkpoint.newest(job.run)
    assert found is not None, "a launch ends with a checkpoint"
    steps, metrics, prefix = found[1].step, final.evaluation.metrics, "held_out_firing_rate/"
    summary = {
        "name": job.config.run.name, "status": "finished" if job.stop_step == job.schedule_steps else "stopped",
        "steps": steps, "schedule_steps": job.schedule_steps, "samples": job.samples(steps),
        "seconds": round(found[1].seconds, 1), "world_size": found[1].world_size,
        "measured_samples": final.samples,
        "metrics": {k: round(v, 4) for k, v in metrics.items() if not k.startswith(prefix)},
        "chance": {k: round(v, 4) for k, v in final.held_out.chance().items()},
        "steps_to_target": steps_to_target(read_lines(job.run / "metrics.jsonl"), job.config.evaluation.targets),
        "firing_rates": {k.removeprefix(prefix): round(v, 4) for k, v in metrics.items() if k.startswith(prefix)},
        "recoveries": max(0, len(list(read_lines(job.run / "starts.jsonl"))) - 1),
        "quarantined": quarantined(job),
        "nonfinite_steps": sum("nonfinite" in line for line in read_lines(job.run / "metrics.jsonl")),
        "versions": versions(),
    }
    (job.run / REPORT).unlink(missing_ok=True)
    write_atomically(job.run / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def quarantined(job: TrainingJob) -> dict[str, int]:
    """Bad samples by reason: at ingest, and at feed time (`feed/...`)."""
    from pipelines.store.quarantine import count_reasons, read_quarantine

    counts = dict(count_reasons(read_quarantine(job.store)))
    for path in sorted((job.run / "bad_samples").glob("rank-*.jsonl")):
        for line in read_lines(path):
            key = f"feed/{line['reason']}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    names = ("ashnets", "torch", "torchvision", "ray", "deepspeed", "spikingjelly", "transformers")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


class Result(NamedTuple):
    """One measure of the headline."""

    key: str
    value: float
    chance: float | None
    meaning: str


def headline(summary: dict[str, Any]) -> list[Result]:
    """The measures that a person wants first, against chance (MLM: against a wrong image)."""
    metrics, levels = summary["metrics"], dict(summary["chance"])
    if "mlm/accuracy_wrong_image" in metrics:
        levels["mlm/accuracy_right_image"] = metrics["mlm/accuracy_wrong_image"]
    return [Result(key, metrics[key], levels.get(key), meaning) for key, meaning in MEANING.items() if key in metrics]


def measured_on(summary: dict[str, Any]) -> str:
    """Which held-out samples the measures of a summary are of."""
    most = summary.get("measured_samples", 0)
    return f"at most {most} samples of a split" if most else "all samples"


def targets_in_words(found: dict[str, dict[str, int | None]]) -> str:
    """`R@5 of 0.5, 0.9: image to text 50, -; ...`."""
    targets = ", ".join(next(iter(found.values())))
    measures = (f"{MEASURES[key]} {', '.join('-' if step is None else str(step) for step in steps.values())}"
                for key, steps in found.items())
    return f"R@5 of {targets}: {'; '.join(measures)}"


def print_summary(run: Path, summary: dict[str, Any]) -> None:
    """Tell a person what was learned against chance, where it lies, and what to try next."""
    table = Table(title=f"{summary['name']}: {summary['status']} after {summary['steps']} steps, "
                        f"{summary['samples']} images, {summary['seconds'] / 60:.1f} minutes of training",
                  title_justify="left")
    for column in ("measure", "result", "chance", "what it means"):
        table.add_column(column, justify="right" if column in ("result", "chance") else "left")
    for key, value, chance, meaning in headline(summary):
        table.add_row(key, f"{value:.3f}", "" if chance is None else f"{chance:.3f}", meaning)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    if summary.get("measured_samples"):
        console.print(f"measured on {measured_on(summary)}")
    rates = ", ".join(f"{name} {rate:.1%}" for name, rate in summary["firing_rates"].items())
    console.print(f"firing rates: {rates or 'no spiking layer'}")
    if summary.get("steps_to_target"):
        console.print(f"steps to a held-out {targets_in_words(summary['steps_to_target'])}")
    bad = summary["quarantined"]
    console.print(f"bad samples: {', '.join(f'{count} {reason}' for reason, count in bad.items()) if bad else 'none'};"
                  f" restarts survived: {summary['recoveries']}; steps not applied, since something was not finite: "
                  f"{summary.get('nonfinite_steps', 0)}", soft_wrap=True)
    console.print(f"everything lies in {run}", soft_wrap=True)
    if (run / REPORT).exists():
        console.print(f"curves and pictures: {run / REPORT} (for any browser)", soft_wrap=True)
    console.print(f"live curves: {program('tensorboard')} --logdir {run / 'tensorboard'}", soft_wrap=True)
    if summary["status"] == "stopped":
        console.print("to go on: the same command without train.max_steps (or with a larger one)")
    else:
        console.print(f"to try next: {program('python')} jobs/pretrain.py run.name=ann model.summary_ratio.mode=fixed "
                      "model.summary_ratio.value=0   (the same without the spiking encoder)", soft_wrap=True)


def program(name: str) -> str:
    """A program of this environment as it can be typed in the current folder."""
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
