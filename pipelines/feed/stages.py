"""Stages: every few epochs the samples are grouped anew, by embeddings of the model that is being trained.

Everything stands at fixed positions of the stream, so that its order stays a pure function of seed, data version and
stages: stage k begins with epoch k * every, and its groups are built from the model as it was `lead` groups earlier.
Stage 0 is the grouped store that training started with. All stages group the same samples, so epochs stay as long.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.disk import no_room
from pipelines.errors import FinalError, UserError, is_users_mistake
from pipelines.files import write_atomically


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
        return self.path(stage) / "failed.json"

    def fail(self, stage: int, error: Exception) -> None:
        """Tell those who wait for a stage why it could not be built."""
        mistake = is_users_mistake(error)
        why = str(error) if mistake else f"{type(error).__name__}: {error}"
        try:
            write_atomically(self.failure(stage), json.dumps({"mistake": mistake, "why": why}).encode())
        except OSError:  # the disk has no room for the reason, but for a file without content
            self.failure(stage).touch()

    def ready(self, stage: int) -> bool:
        """Whether the stage's grouped store is there.

        Where it could not be built: UserError if the user can mend it, such as a full disk, else FinalError.
        """
        if self.groups(stage).exists():
            return True
        if self.failure(stage).exists():
            told = json.loads(self.failure(stage).read_text() or "null") or {
                "mistake": True, "why": no_room(self.path(stage), "them", None)}
            kind = UserError if told["mistake"] else FinalError
            raise kind(f"stage {stage} of the groups could not be built: {told['why']}")
        return False
