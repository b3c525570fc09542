"""The end of a run: weights loaded anew, scored on held-out data, written to summary.json, told to a person."""
from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.files import write_atomically
from pipelines.training import checkpoint
from pipelines.training.job import TrainingJob
from pipelines.training.run_directory import read_lines

MEANING = {
    "retrieval/i2t_r5": "held-out scenes: the right caption among the best 5 of all",
    "retrieval/t2i_r5": "held-out scenes: the right picture among the best 5 of all",
    "retrieval_unseen/i2t_r5": "things never seen in training: right name in the best 5",
    "retrieval_unseen/t2i_r5": "things never seen in training: right picture in the best 5",
    "retrieval_reranked/i2t_r1": "first place after re-ranking by the fusion, one caption an image",
    "retrieval_reranked/t2i_r1": "first place after re-ranking by the fusion, one caption an image",
    "stua/a2t_r5": "captions found by the spiking feature alone",
    "itm/accuracy_random": "matched or not, against random captions",
    "itm/accuracy_hard": "matched or not, against the most similar wrong caption",
    "mlm/accuracy_right_image": "masked words guessed with the right image (chance: with a wrong one)",
    "mvm/explained": "share of the spike code explained beyond mean rates",
}


def finished_summary(run: Path) -> dict[str, Any] | None:
    """summary.json where a launch has ended well, else None."""
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_summary(job: TrainingJob) -> dict[str, Any]:
    """Load the exported weights, evaluate them, write summary.json and return it.

    A run that was stopped before its schedule's end is scored on `evaluation.validate_samples` samples only.
    """
    import torch

    from ashnets.weights_file import load_weights
    from pipelines.evaluation.held_out import HeldOut
    from pipelines.training.model import build_model

    device = torch.device(job.device)
    if job.device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads()))
    model = build_model(job.config)
    load_weights(model, job.run / "export" / "model.safetensors")
    finished = job.stop_step == job.schedule_steps
    held_out = HeldOut(job.config, job.store, job.store_version, device, limit=0 if finished else None)
    metrics = held_out.validate(model.to(device))
    found = checkpoint.newest(job.run)
    assert found is not None, "a launch ends with a checkpoint"
    steps = found[1].step
    prefix = "held_out_firing_rate/"
    summary = {
        "name": job.config.run.name, "status": "finished" if finished else "stopped", "steps": steps,
        "schedule_steps": job.schedule_steps, "samples": job.samples(steps), "seconds": round(found[1].seconds, 1),
        "world_size": found[1].world_size,
        "metrics": {k: round(v, 4) for k, v in metrics.items() if not k.startswith(prefix)},
        "chance": {k: round(v, 4) for k, v in held_out.chance().items()},
        "firing_rates": {k.removeprefix(prefix): round(v, 4) for k, v in metrics.items() if k.startswith(prefix)},
        "recoveries": max(0, len(list(read_lines(job.run / "starts.jsonl"))) - 1),
        "quarantined": quarantined(job),
        "versions": versions(),
    }
    write_atomically(job.run / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def quarantined(job: TrainingJob) -> dict[str, int]:
    """Bad samples by reason: at ingest, and at feed time (`feed/...`)."""
    from pipelines.store.quarantine import count_reasons, read_quarantine

    counts = dict(count_reasons(read_quarantine(job.store)))
    for path in sorted((job.run / "bad_samples").glob("rank-*.jsonl")):
        for line in read_lines(path):
            for reason, count in line["bad"].items():
                counts[f"feed/{reason}"] = counts.get(f"feed/{reason}", 0) + count
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


def print_summary(run: Path, summary: dict[str, Any]) -> None:
    """Tell a person what was learned against chance, where it lies, and what to try next."""
    metrics, levels = summary["metrics"], dict(summary["chance"])
    if "mlm/accuracy_wrong_image" in metrics:
        levels["mlm/accuracy_right_image"] = metrics["mlm/accuracy_wrong_image"]
    table = Table(title=f"{summary['name']}: {summary['status']} after {summary['steps']} steps, "
                        f"{summary['samples']} images, {summary['seconds'] / 60:.1f} minutes of training",
                  title_justify="left")
    for column in ("measure", "result", "chance", "what it means"):
        table.add_column(column, justify="right" if column in ("result", "chance") else "left")
    for key, meaning in MEANING.items():
        if key in metrics:
            table.add_row(key, f"{metrics[key]:.3f}", f"{levels[key]:.3f}" if key in levels else "", meaning)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    rates = ", ".join(f"{name} {rate:.1%}" for name, rate in summary["firing_rates"].items())
    console.print(f"firing rates: {rates or 'no spiking layer'}")
    bad = summary["quarantined"]
    console.print(f"bad samples: {', '.join(f'{count} {reason}' for reason, count in bad.items()) if bad else 'none'};"
                  f" restarts survived: {summary['recoveries']}")
    console.print(f"everything lies in {run}", soft_wrap=True)
    console.print(f"curves: tensorboard --logdir {run / 'tensorboard'}", soft_wrap=True)
    if summary["status"] == "stopped":
        console.print("to go on: the same command without train.max_steps (or with a larger one)")
    else:
        console.print("to try next: python jobs/pretrain.py run.name=ann model.summary_ratio.mode=fixed "
                      "model.summary_ratio.value=0   (the same without the spiking encoder)", soft_wrap=True)
