"""The settings of a replay (no torch or ray import)."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReplayConfig:
    """Everything `jobs/replay.py` takes."""

    run: str = ""
    """Folder of a run, or the name of one below the default storage."""
    step: int = 0
    """The step to run again; the first is 1."""
