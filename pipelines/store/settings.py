"""The settings of jobs that read a store, and those of `jobs/inspect.py` (no ray or torch import)."""
from __future__ import annotations

from dataclasses import dataclass, field

from ashnets.config import require


@dataclass(frozen=True)
class StoreConfig:
    """The store that a job reads."""

    store: str = ""
    """Folder or address of the Delta store; empty: <repository>/data/demo."""


@dataclass(frozen=True)
class InspectConfig:
    """Everything `jobs/inspect.py` takes."""

    to: str = ""
    """Folder of the page and the contact sheet; empty: <store>.inspection, for an address below this folder."""
    samples: int = 48
    """Samples that the contact sheet shows, drawn evenly from sources and splits."""
    seed: int = 0
    """Seed of that draw."""
    data: StoreConfig = field(default_factory=StoreConfig)

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", self.samples, "at least 1")
