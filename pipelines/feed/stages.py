"""Stages: every few epochs the samples are grouped anew, by embeddings of the model that is being trained.

Everything stands at fixed positions of the stream, so that its order stays a pure function of seed, data version and
stages: stage k begins with epoch k * every, and its groups are built from the model as it was `lead` groups earlier.
Stage 0 is the grouped store that training started with. All stages group the same samples, so epochs stay as long.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import FinalError


@dataclass(frozen=True)
class Stages:
    """When the stages of a run begin, and where they lie."""

    folder: str
    """<run>/stages."""
    every: int
    """Epochs of a stage."""
    lead: int
    """Groups of the stream between the model that is taken and the stage that is built from it."""

    def number(self, epoch: int) -> int:
        """The stage that `epoch` belongs to."""
        return epoch // self.every

    def begins(self, stage: int, epoch_groups: int) -> int:
        """The position where a stage begins."""
        return stage * self.every * epoch_groups

    def model_step(self, stage: int, epoch_groups: int, step_groups: int) -> int:
        """Optimizer steps of the model that a stage is built from: at least one."""
        return max(1, (self.begins(stage, epoch_groups) - self.lead) // step_groups)

    def path(self, stage: int) -> Path:
        """Everything of one stage."""
        return Path(self.folder) / f"stage-{stage:04d}"

    def model(self, stage: int) -> Path:
        """The model that a stage is built from, in export form."""
        return self.path(stage) / "model"

    def groups(self, stage: int) -> Path:
        """A stage's grouped store: there whole, or not there yet."""
        return self.path(stage) / "groups"

    def failure(self, stage: int) -> Path:
        """Why a stage could not be built, while that stands."""
        return self.path(stage) / "failed.txt"

    def ready(self, stage: int) -> bool:
        """Whether the stage's grouped store is there; FinalError where it could not be built."""
        if self.groups(stage).exists():
            return True
        if self.failure(stage).exists():
            why = self.failure(stage).read_text().strip()
            raise FinalError(f"stage {stage} of the groups could not be built: {why}")
        return False
