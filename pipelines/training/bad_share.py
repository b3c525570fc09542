"""A feed that delivers too many bad samples ends the launch: the data must be mended, not trained around."""
from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import UserError

JUDGED_FROM = 1_000
"""Samples of a launch from which on the share is judged."""


@dataclass
class BadShare:
    """Counts the bad samples of a launch; the same on every rank."""

    limit: float
    bad: int = 0
    samples: int = 0

    def step(self, bad: int, samples: int) -> None:
        """Take a step's counts, those of all ranks. Raises UserError where more than `limit` of all were bad."""
        self.bad += bad
        self.samples += samples
        if self.samples >= JUDGED_FROM and self.bad > self.limit * self.samples:
            raise UserError(
                f"feed: {self.bad} of {self.samples} samples were bad ({self.bad / self.samples:.1%}, "
                f"feed.max_bad_share={self.limit}): bad_samples/rank-*.jsonl in the run's folder name them with their "
                "reasons; build the groups again from a store without them, or raise feed.max_bad_share")
