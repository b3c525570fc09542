"""Run `jobs/tune.py` as a user does, and look at what a sweep leaves."""
from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

from pipelines.report.summary import read_summary
from tests.e2e.conftest import Jobs, lines

SPACE = {"train.lr": {"choice": [1e-3, 3e-3, 1e-5]}, "model.summary_ratio.value": {"uniform": [0.5, 1.5]}}
KEYS = ("scaling.workers=1", "train.validate_every=3", "evaluation.validate_samples=0", "evaluation.rerank=0",
        "checkpoint.keep=1", "tune.concurrent=2", "tune.metric=itm/accuracy_random", "train.precision=auto")


def start(jobs: Jobs, name: str, *keys: str, space: dict | None = None) -> subprocess.Popen[str]:
    """Start a sweep from a foreign folder."""
    words = [word.replace("pretrain.py", "tune.py") for word in jobs.arguments(
        f"run.name={name}", f"tune.space={json.dumps(space or SPACE)}", *KEYS, *keys)]
    return subprocess.Popen(words, cwd=jobs.home, env=jobs.environment(), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)


def run(jobs: Jobs, name: str, *keys: str, space: dict | None = None,
        timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Run a sweep to its end."""
    process = start(jobs, name, *keys, space=space)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.terminate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def assert_each_trial_once(sweep: Path, trials: int) -> dict[str, dict]:
    """Every trial was planned once and has ended once; returns the ends by name."""
    written = lines(sweep / "trials.jsonl")
    counted = Counter((line["trial"], line["event"]) for line in written)
    names = [f"trial-{number:04d}" for number in range(trials)]
    assert counted == Counter((name, event) for name in names for event in ("planned", "ended"))
    return {line["trial"]: line for line in written if line["event"] == "ended"}


def assert_each_step_of_a_trial_once(run: Path, steps: int) -> None:
    """The live lines of the run hold each step once, whatever happened to it on the way."""
    assert [line["step"] for line in lines(run / "metrics.jsonl") if "loss" in line] == list(range(1, steps + 1))


def metrics(run: Path) -> dict[str, float]:
    """The final metrics of a run."""
    summary = read_summary(run)
    assert summary is not None
    return summary["metrics"]
