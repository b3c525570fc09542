"""What a person sees while training runs: a bar on a terminal, a line every half minute in a log.

It reads metrics.jsonl, the truth that rank 0 writes, so the workers' own output can stay quiet.
"""
from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.training.run_directory import read_lines

LOG_EVERY_S = 30.0


def describe(line: dict[str, Any]) -> str:
    """One metrics line in words."""
    if "nonfinite" in line:
        return f"the {line['nonfinite']} is not finite: the step was not applied"
    if "loss" in line:
        tasks = " ".join(f"{name} {line[f'loss/{name}']:.3f}" for name in ("itm", "mlm", "mvm", "itc", "stua")
                         if f"loss/{name}" in line)
        return f"loss {line['loss']:.3f} ({tasks}), {line['samples_per_s']:.0f} images/s"
    wanted = ("retrieval/i2t_r5", "retrieval/t2i_r5", "retrieval_unseen/i2t_r5", "itm/accuracy_random")
    return "held out: " + ", ".join(f"{name} {line[name]:.3f}" for name in wanted if name in line)


class TrainingProgress:
    """Follow a run's metrics.jsonl from a thread while the `with` block lasts."""

    def __init__(self, run: Path, total: int) -> None:
        self._path, self._total = run / "metrics.jsonl", total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._seen = len(list(read_lines(self._path)))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _new_lines(self) -> list[dict[str, Any]]:
        lines = list(read_lines(self._path))
        if len(lines) < self._seen:
            self._seen = 0
        fresh = lines[self._seen:]
        self._seen = len(lines)
        return fresh

    def _follow(self) -> None:
        if sys.stdout.isatty():
            self._follow_on_terminal()
            return
        printed = 0.0
        while True:
            stopping = self._stop.wait(1.0)
            for line in self._new_lines():
                validation = "loss" not in line or "nonfinite" in line
                if validation or stopping or time.monotonic() - printed >= LOG_EVERY_S:
                    print(f"step {line['step']}/{self._total}: {describe(line)}", flush=True)
                    printed = printed if validation else time.monotonic()
            if stopping:
                return

    def _follow_on_terminal(self) -> None:
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.description}"))
        with Progress(*columns, console=Console()) as progress:
            task = progress.add_task("starting the workers", total=self._total)
            while True:
                stopping = self._stop.wait(0.5)
                for line in self._new_lines():
                    if "loss" in line and "nonfinite" not in line:
                        progress.update(task, completed=line["step"], description=describe(line))
                    else:
                        progress.console.print(f"step {line['step']}: {describe(line)}")
                if stopping:
                    return
