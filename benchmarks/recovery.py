"""How long a killed worker costs: `python -m benchmarks.recovery` beside a bare Ray Train loop, in one run.

Two workers train the tiny model of tests/e2e/tiny.yaml; one gets SIGKILL; the time until the next step of the restarted
group is trained is the recovery. Ours restores the exact state and order; the bare loop
(benchmarks/peers/bare_train.py) has the same model, Ray's checkpoints and Ray Data's default path, and starts its data
anew. The two take turns. Writes benchmarks/results/recovery.json after every turn; about 8 minutes on 2 quiet cores.
"""
from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.code_version import code_version
from pipelines.training.run_directory import read_lines
from tests.chaos.faults import kill_family, workers
from tests.e2e.conftest import make_jobs

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "recovery.json"
TURNS, KILLS, STEPS_BETWEEN = 2, 3, 5
AIM = 1.2
PATIENCE_S = 300


def wait(happened: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> float:
    """Wait for it; the moment at which it was seen."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come")
        time.sleep(0.02)
    return time.monotonic()


def ours(run: Path) -> tuple[list[int], int]:
    """The steps trained since the newest start, and the process of rank 1."""
    start = list(read_lines(run / "starts.jsonl"))[-1]["step"]
    trained = [line["step"] for line in read_lines(run / "metrics.jsonl") if "loss" in line and line["step"] > start]
    return trained, workers(run)[1].pid if trained else 0


def bare(run: Path) -> tuple[list[int], int]:
    """The same of the bare loop."""
    written = list(read_lines(run / "bare.jsonl"))
    newest = max((i for i, line in enumerate(written) if "start" in line), default=len(written))
    return [line["step"] for line in written[newest + 1:]], written[newest]["pids"][1] if newest < len(written) else 0


def recoveries(command: list[str], run: Path, look: Callable[[Path], tuple[list[int], int]],
               starts: Path) -> list[float]:
    """Seconds from each of KILLS kills to the next step."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL,
                               start_new_session=True)

    def trained(least: int, after: int) -> Callable[[], bool]:
        """Whether a worker group that started later than the first `after` has trained `least` steps."""
        def happened() -> bool:
            begun = sum("start" in line or starts.name == "starts.jsonl" for line in read_lines(starts))
            return begun > after and len(look(run)[0]) >= least
        return happened

    seconds: list[float] = []
    try:
        for kill in range(KILLS):
            wait(trained(STEPS_BETWEEN, kill), process, "training")
            os.kill(look(run)[1], signal.SIGKILL)
            began = time.monotonic()
            seconds.append(wait(trained(1, kill + 1), process, "a step after the kill") - began)
            print(f"{look.__name__}: {seconds[-1]:.1f} s from the kill to the next step", flush=True)
    finally:
        if process.poll() is None:
            kill_family(process.pid)
    return seconds


def main() -> None:
    """Prepare a store, let the two take turns."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what it started ends too
    seconds: dict[str, list[float]] = {"ours": [], "bare Ray Train": []}
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(Path(folder))
        keys = ("train.schedule_steps=1000", "train.validate_every=0", "evaluation.rerank=0")
        first = jobs.run("run.name=first", *keys, "train.max_steps=1")  # makes the groups
        if first.returncode:
            raise SystemExit(first.stderr)
        peer = jobs.storage / "first"
        [groups] = [path for path in jobs.store.parent.glob("store.groups/*") if path.is_dir()]
        for turn in range(TURNS):
            run = jobs.storage / f"run-{turn}"
            seconds["ours"] += recoveries(jobs.arguments(*keys, f"run.name={run.name}"), run, ours,
                                          run / "starts.jsonl")
            (peer / "bare.jsonl").unlink(missing_ok=True)
            seconds["bare Ray Train"] += recoveries(
                [sys.executable, "-m", "benchmarks.peers.bare_train", str(peer), str(groups)], peer, bare,
                peer / "bare.jsonl")
            write(seconds)
    print(RESULT.read_text())


def write(seconds: dict[str, list[float]]) -> None:
    """Write the figures of the turns so far."""
    middle = {arm: round(statistics.median(values), 2) for arm, values in seconds.items()}
    RESULT.write_text(json.dumps({
        "seconds_to_next_step": middle, "all": {arm: [round(s, 2) for s in values] for arm, values in seconds.items()},
        "ratio": round(middle["ours"] / middle["bare Ray Train"], 2), "aim": AIM, "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1), "code": code_version()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
