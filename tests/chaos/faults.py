"""Faults of a run and the lives that they make up, all of it a pure function of a seed."""
from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Kind = Literal["worker", "driver", "head", "orphan", "preempt"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGSTOP)
FIRST, LAST = 2, 7
"""Steps at which a fault may come (a run has 12: behind the last fault there is something left to train)."""


@dataclass(frozen=True)
class Fault:
    """What happens `delay` seconds after the line of `step` stands in metrics.jsonl.

    The delay is drawn up to about the length of two steps, so that the fault meets forward, backward, update,
    validation (behind step 6) and checkpoint (behind every third step) alike.
    """

    kind: Kind
    step: int
    delay: float
    rank: int = 0
    signal: str = ""
    """Name of the signal that a worker gets."""


@dataclass(frozen=True)
class Life:
    """A run and everything that happens to it."""

    name: str
    faults: tuple[Fault, ...]


def life(name: str, kinds: list[Kind], seed: int) -> Life:
    """The faults of these kinds at random steps, in order; `name` and `seed` decide them."""
    draw = random.Random(f"{seed}/{name}")
    steps = sorted(draw.sample(range(FIRST, LAST + 1), len(kinds)))
    return Life(name, tuple(
        Fault(kind, step, round(draw.uniform(0, 1), 3), draw.randrange(2),
              draw.choice(SIGNALS).name if kind == "worker" else "")
        for kind, step in zip(kinds, steps, strict=True)))


def short(seed: int) -> list[Life]:
    """What `make chaos` plays: 2 worker faults; a preemption, a killed driver and one with orphaned workers."""
    return [life("workers", ["worker", "worker"], seed), life("drivers", ["preempt", "driver", "orphan"], seed)]


def full(seed: int) -> list[Life]:
    """20 worker faults, 5 killed drivers, 3 killed heads, 3 cases of orphans, 3 preemptions."""
    workers: list[Life] = [life(f"workers-{n}", ["worker", "worker"], seed) for n in range(10)]
    drivers = [life(f"drivers-{n}", kinds, seed) for n, kinds in enumerate((
        ["driver", "driver", "head"], ["driver", "preempt", "orphan"], ["driver", "head", "preempt"],
        ["orphan", "driver", "head"], ["preempt", "orphan"]))]
    return [*workers, *drivers]


def workers(run: Path) -> dict[int, psutil.Process]:
    """Rank -> process of the worker group that trains now, by the files of its watchdogs."""
    found: dict[int, psutil.Process] = {}
    for path in sorted((run / "stalls").glob("*.txt"), key=lambda path: path.stat().st_mtime):
        words = path.stem.split("-")
        try:
            process = psutil.Process(int(words[5]))
            if process.status() != psutil.STATUS_ZOMBIE:
                found[int(words[3])] = process
        except psutil.NoSuchProcess:
            continue
    return found


def kill_family(pid: int) -> None:
    """SIGKILL to a process and all below it at once, as when a machine goes down."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for member in family:
        try:
            member.suspend()
        except psutil.NoSuchProcess:
            continue
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def wait_until_gone(processes: list[psutil.Process], seconds: float) -> float:
    """Wait for the processes to end; how long it took. AssertionError after `seconds`."""
    began = time.monotonic()
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive, f"still there after {seconds} s: {alive}"
    return time.monotonic() - began
