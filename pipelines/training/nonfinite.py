"""Steps whose loss or gradient is not finite: written down, and the end of the launch where they do not stop."""
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from pipelines.errors import FinalError
from pipelines.files import write_atomically
from pipelines.training.job import TrainingJob
from pipelines.training.step import StepReport

NAMED = 8
"""Sample ids that the message of a launch's end names; all of them stand in the file."""


class NonFinite(FinalError):
    """Training yields numbers that are not finite: it must not go on."""


@dataclass
class NonFiniteSteps:
    """Counts the steps in a row that were dropped; the same on every rank."""

    job: TrainingJob
    rank: int
    in_a_row: int = 0

    def step(self, report: StepReport) -> None:
        """Take a step's report (on all ranks together).

        Writes `nonfinite/step-NNNNNNNN.json` for a step that was dropped. Raises NonFinite after `train.max_nonfinite`
        of them in a row.
        """
        if not report.nonfinite:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        ranks = gathered(micro_batches(report))
        committed = sorted(folder.name for folder in (self.job.run / "checkpoints").glob("step-*"))
        last_good = gathered(committed[-1:])[0]
        if self.rank == 0:
            self._write(report, ranks, "".join(last_good))
        if self.in_a_row >= self.job.config.train.max_nonfinite:
            raise NonFinite(told(report, self.in_a_row, ranks, "".join(last_good)))

    def _write(self, report: StepReport, ranks: list[list[dict[str, Any]]], last_good: str) -> None:
        folder = self.job.run / "nonfinite"
        folder.mkdir(exist_ok=True)
        content = {"step": report.step, "attempt": self.job.attempt, "found": report.nonfinite,
                   "checkpoint": last_good or None, "ranks": dict(enumerate(ranks))}
        write_atomically(folder / f"step-{report.step:08d}.json", json.dumps(content, indent=1).encode())


def micro_batches(report: StepReport) -> list[dict[str, Any]]:
    """What one rank ran in the step, for a file of JSON; losses as text where they are not finite."""
    return [{"position": batch.position, "sample_ids": list(batch.sample_ids),
             "losses": {name: finite_or_text(value) for name, value in losses.items()}}
            for batch, losses in zip(report.trained, report.losses, strict=True)]


def finite_or_text(value: float) -> float | str:
    """`value`, or `nan`, `inf` or `-inf` as text: JSON has no such numbers."""
    return value if abs(value) < float("inf") else str(value)


def gathered(mine: Any) -> list[Any]:
    """`mine` of every rank."""
    if not dist.is_initialized():
        return [mine]
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones


def told(report: StepReport, in_a_row: int, ranks: list[list[dict[str, Any]]], last_good: str) -> str:
    """One line: step, losses, samples, where to go on from."""
    batches = [batch for rank in ranks for batch in rank]
    guilty = [b for b in batches if any(isinstance(v, str) for v in b["losses"].values())] or batches
    ids = [sample for batch in guilty for sample in batch["sample_ids"]]
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return (f"step {report.step}: the {report.nonfinite} is not finite, {in_a_row} steps in a row "
            f"(train.max_nonfinite); none of them was applied. Losses {guilty[0]['losses']}; samples "
            f"{', '.join(ids[:NAMED])}{more}; the last good checkpoint is {last_good or 'none'}; "
            f"nonfinite/step-{report.step:08d}.json has the whole batch")
