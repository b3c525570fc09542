"""Plays a life: starts the run, strikes it, starts it again where a user would, and measures what it takes."""
from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.training.lease import lock
from pipelines.training.run_directory import read_lines
from tests.chaos.faults import Fault, Life, kill_family, wait_until_gone, workers
from tests.e2e.conftest import Jobs
from tests.e2e.outcome import STEPS

STALL_S = 20
"""`scaling.stall_timeout_s` of the runs: the time after which a stopped worker is noticed."""
ORPHANS_S = 45
"""Orphaned workers are gone within this time."""
PATIENCE_S = 280


@dataclass
class Player:
    """One life on the way."""

    jobs: Jobs
    life: Life
    extra: tuple[str, ...] = ()
    """More keys of the run."""
    struck: list[dict[str, Any]] = field(default_factory=list)
    """For each fault: what it was, the launches so far, the seconds until the next step was trained."""

    def __post_init__(self) -> None:
        self.folder = self.jobs.storage / self.life.name
        self.keys = (f"run.name={self.life.name}", f"scaling.stall_timeout_s={STALL_S}", *self.extra)
        self.process: subprocess.Popen[str] = self.jobs.start(*self.keys)

    def play(self) -> subprocess.CompletedProcess[str]:
        """All faults, then the end of the run."""
        try:
            for fault in self.life.faults:
                self._wait_for_step(fault.step)
                time.sleep(fault.delay)
                starts = len(list(read_lines(self.folder / "starts.jsonl")))
                began = time.monotonic()
                getattr(self, f"_{fault.kind}")(fault)
                self._wait_for_a_step_after(starts)
                self.struck.append(asdict(fault) | {"seconds_to_next_step": round(time.monotonic() - began, 2)})
            out, err = self.process.communicate(timeout=PATIENCE_S)
        finally:
            if self.process.poll() is None:
                kill_family(self.process.pid)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def _worker(self, fault: Fault) -> None:
        workers(self.folder)[fault.rank].send_signal(signal.Signals[fault.signal])

    def _driver(self, fault: Fault) -> None:
        self.process.kill()
        self._again()

    def _head(self, fault: Fault) -> None:
        kill_family(self.process.pid)
        self._again()

    def _preempt(self, fault: Fault) -> None:
        self.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        os.killpg(self.process.pid, signal.SIGTERM)
        _, err = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 75, err
        assert err.startswith("preempted at step ") and err.endswith(": run the same command again\n"), err
        self.process = self.jobs.start(*self.keys)

    def _orphan(self, fault: Fault) -> None:
        """The workers are stopped, their driver dies, the next launch trains; then the old workers wake up."""
        orphans = list(workers(self.folder).values())
        assert orphans
        with lock(self.folder):  # one that is stopped while it holds the lock lets no launch take the run over
            for orphan in orphans:
                orphan.suspend()
        starts = len(list(read_lines(self.folder / "starts.jsonl")))
        self._driver(fault)
        self._wait_for_a_step_after(starts)
        for orphan in orphans:
            if orphan.is_running():
                orphan.resume()
        wait_until_gone(orphans, ORPHANS_S)

    def _again(self) -> None:
        """Start the command once more, at once."""
        self.process.wait(timeout=PATIENCE_S)
        self.process = self.jobs.start(*self.keys)

    def _trained(self) -> list[int]:
        return [line["step"] for line in read_lines(self.folder / "metrics.jsonl") if "loss" in line]

    def _wait_for_step(self, step: int) -> None:
        self._wait(lambda: step in self._trained(), f"step {step}")

    def _wait_for_a_step_after(self, starts: int) -> None:
        """Wait until a worker group that started later than the first `starts` has trained a step, if one is left."""
        def happened() -> bool:
            begun = list(read_lines(self.folder / "starts.jsonl"))[starts:]
            return bool(begun) and (max(self._trained(), default=0) > begun[-1]["step"] or begun[-1]["step"] >= STEPS)
        self._wait(happened, f"a step after start {starts}")

    def _wait(self, happened: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.life}: {what} did not come: {self.process.communicate()}")
            time.sleep(0.02)


def leftovers(run: Path) -> list[str]:
    """What no launch may leave behind: disposable folders, temporary checkpoints, empty files of watchdogs."""
    return [str(path) for pattern in ("ray-train-*", "checkpoints/.tmp-*") for path in run.glob(pattern)] + [
        str(path) for path in (run / "stalls").glob("*.txt") if path.stat().st_size == 0]


def shared_memory() -> set[Path]:
    """DeepSpeed's buffers in memory."""
    return set(Path("/dev/shm").glob("deepspeed_*"))
