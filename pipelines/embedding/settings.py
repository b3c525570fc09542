"""The settings of `jobs/embed.py` (no ray or torch import)."""
from __future__ import annotations

from dataclasses import dataclass, field

from ashnets.config import require


@dataclass(frozen=True)
class EmbedDataConfig:
    """The store whose samples are embedded."""

    store: str = ""
    """Folder or address of the Delta store; empty: <repository>/data/demo."""
    split: str = ""
    """Only the samples of this split; empty: all."""


@dataclass(frozen=True)
class EmbedConfig:
    """Everything `jobs/embed.py` takes."""

    model: str = ""
    """Run or export; empty: the demo run."""
    to: str = ""
    """Folder to write, which must not exist yet."""
    batch: int = 64
    """Images of a batch."""
    data: EmbedDataConfig = field(default_factory=EmbedDataConfig)

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "at least 1")
