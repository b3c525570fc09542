"""What one launch trains: made by the driver, carried to every worker."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.config import PretrainConfig
from pipelines.feed.plan import FeedPlan
from pipelines.location import Place


@dataclass(frozen=True)
class TrainingJob:
    """One launch of a run: where to start is read from the newest checkpoint, where to stop stands here."""

    config: PretrainConfig
    run: Path
    attempt: int
    plan: FeedPlan
    store: Place
    store_version: int
    groups: int
    schedule_steps: int
    stop_step: int
    device: str
    """`cuda` or `cpu`."""

    def position(self, step: int) -> int:
        """Position in the global stream (in groups) after `step` optimizer steps."""
        position = step * self.plan.step_groups
        return position if self.plan.end is None else min(position, self.plan.end)

    def epoch(self, step: int) -> float:
        """Epochs seen after `step` optimizer steps."""
        return self.position(step) / self.groups

    def samples(self, step: int) -> int:
        """Images seen after `step` optimizer steps."""
        return self.position(step) * self.config.groups.size
