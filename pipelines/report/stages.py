"""Progress of a stage that counts its parts: a line that moves on a terminal, few lines in a log."""
from __future__ import annotations

import sys
import time

LOG_EVERY_S = 10.0


class StageProgress:
    """Call it with (what, done, total)."""

    def __init__(self) -> None:
        self._printed = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of `what` are through."""
        if sys.stdout.isatty():
            print(f"\r  {what}: {done}/{total}", end="\n" if done >= total else "", flush=True)
        elif time.monotonic() - self._printed >= LOG_EVERY_S:
            self._printed = time.monotonic()
            print(f"  {what}: {done}/{total}", flush=True)
