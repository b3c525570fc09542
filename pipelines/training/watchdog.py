"""A rank that makes no step in time writes the stacks of its threads and ends itself: a hang becomes a death."""
from __future__ import annotations

import faulthandler
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

SLOW = 10
"""So many times the limit for what is no step: start-up, the first step, validation, checkpoint, export."""
STEPS = 5
"""A step may last so many times as long as the fastest one, where that is more than the limit."""


class Watchdog:
    """Watches this process while the `with` block lasts, by a thread in C.

    It fires even where a collective operation spins and never gives up Python's lock; a process that is stopped it
    cannot help, but the watchdogs of the ranks that wait for it. The exit code is 1, the stacks lie in stalls/.
    """

    def __init__(self, run: Path, attempt: int, rank: int, limit_s: float) -> None:
        self._path = run / "stalls" / f"attempt-{attempt}-rank-{rank}-pid-{os.getpid()}.txt"
        self._limit = limit_s
        self._fastest = math.inf
        self._last_step: float | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(exist_ok=True)
        self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115 (needed when nothing else works)
        self._arm(SLOW * self._limit)
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)  # the driver may have cleared it away

    def _arm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def step(self) -> None:
        """A step is done: the next one is due."""
        now = time.monotonic()
        if self._last_step is not None:
            self._fastest = min(self._fastest, now - self._last_step)
        self._last_step = now
        self._arm_for_a_step()

    def _arm_for_a_step(self) -> None:
        self._arm(max(self._limit, STEPS * self._fastest) if self._fastest < math.inf else SLOW * self._limit)

    @contextmanager
    def slow(self) -> Iterator[None]:
        """The block may last SLOW times as long as a step."""
        self._arm(SLOW * self._limit)
        yield
        self._arm_for_a_step()


def remove_empty(run: Path) -> None:
    """Remove the files of watchdogs that never fired, left by processes that were killed."""
    for path in (run / "stalls").glob("*.txt"):
        if path.stat().st_size == 0:
            path.unlink()
