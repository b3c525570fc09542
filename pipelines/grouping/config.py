"""The settings of `jobs/group.py` (no ray or torch import)."""
from __future__ import annotations

from dataclasses import dataclass, field

from ashnets.config import TextConfig, require
from pipelines.config import GroupsConfig
from pipelines.store.settings import StoreConfig


@dataclass(frozen=True)
class GroupConfig:
    """Everything `jobs/group.py` takes."""

    model: str = ""
    """Run or export whose image embeddings (ITC) are compared; empty: text features of the BERT initialisation."""
    seed: int = 0
    """Seed of the cells, of the groups' order and of a BERT without a checkpoint."""
    batch: int = 64
    """Images that the model embeds at once."""
    data: StoreConfig = field(default_factory=StoreConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "at least 1")
