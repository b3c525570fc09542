"""Rank 0's pen: metrics.jsonl and TensorBoard; and every rank's record of the samples it trained on."""
from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ashnets.batch import MicroBatch
from pipelines.training.job import TrainingJob
from pipelines.training.run_directory import LineWriter
from pipelines.training.step import StepReport


class MetricsRecorder:
    """Averages speed and waiting over the steps between two lines; losses are the logged step's own."""

    def __init__(self, job: TrainingJob, start_step: int) -> None:
        self._job = job
        self._lines = LineWriter(job.run / "metrics.jsonl")
        self._board = SummaryWriter(str(job.run / "tensorboard"), purge_step=start_step + 1)
        self._seconds = self._waited = 0.0
        self._steps = 0

    def step(self, report: StepReport, last: bool) -> None:
        """Take a step's report; write a line every `train.log_every` steps and at the last one."""
        self._seconds += report.seconds
        self._waited += report.data_wait
        self._steps += 1
        if report.step % self._job.config.train.log_every and not last:
            return
        samples = self._job.samples(report.step)
        speed = (samples - self._job.samples(report.step - self._steps)) / self._seconds
        self.write(report.step, {
            **report.means, "lr": report.lr, "grad_norm": report.grad_norm, "samples_per_s": round(speed, 2),
            "data_wait_share": round(self._waited / self._seconds, 4)})
        self._seconds = self._waited = 0.0
        self._steps = 0

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line and the same scalars for TensorBoard."""
        job = self._job
        self._lines.write({"attempt": job.attempt, "step": step, "epoch": round(job.epoch(step), 4),
                           "samples": job.samples(step), **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        self._lines.close()
        self._board.close()


class SampleRecorder:
    """One line a group of what this rank trained on."""

    def __init__(self, run: Path, rank: int, attempt: int) -> None:
        self._attempt = attempt
        self._lines = LineWriter(run / "samples" / f"rank-{rank}.jsonl")

    def step(self, step: int, batches: list[MicroBatch]) -> None:
        """Record the groups of a finished step."""
        for batch in batches:
            g = batch.group_size
            for index, group_id in enumerate(batch.group_ids):
                self._lines.write({
                    "attempt": self._attempt, "step": step, "position": batch.position + index,
                    "group_id": group_id, "sample_ids": list(batch.sample_ids[index * g:(index + 1) * g])})

    def close(self) -> None:
        """Flush everything."""
        self._lines.close()
