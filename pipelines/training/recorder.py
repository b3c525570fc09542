"""Rank 0's pen: metrics.jsonl and TensorBoard; and every rank's record of the samples it trained on."""
from __future__ import annotations

import math
import zlib
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
        """Take a step's report; write a line every `train.log_every` steps, at the last one and where the step was
        not applied."""
        self._seconds += report.seconds
        self._waited += report.data_wait
        self._steps += 1
        if report.step % self._job.config.train.log_every and not last and not report.nonfinite:
            return
        samples = self._job.samples(report.step)
        speed = (samples - self._job.samples(report.step - self._steps)) / self._seconds
        self.write(report.step, {
            **report.means, "lr": report.lr, "grad_norm": report.grad_norm, "samples_per_s": round(speed, 2),
            "data_wait_share": round(self._waited / self._seconds, 4)}, report.nonfinite)
        self._seconds = self._waited = 0.0
        self._steps = 0

    def write(self, step: int, values: dict[str, float], nonfinite: str = "") -> None:
        """Write one line and the same scalars for TensorBoard; JSON holds no numbers that are not finite."""
        job = self._job
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._lines.write({"attempt": job.attempt, "step": step, "epoch": round(job.epoch(step), 4),
                           "samples": job.samples(step), **({"nonfinite": nonfinite} if nonfinite else {}), **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        self._lines.close()
        self._board.close()


class SampleRecorder:
    """One line a group of what this rank trained on, and one line a bad sample."""

    def __init__(self, run: Path, rank: int, attempt: int, groups: bool) -> None:
        """`groups`: write the groups too, not only what was bad."""
        self._attempt = attempt
        self._groups = LineWriter(run / "samples" / f"rank-{rank}.jsonl") if groups else None
        self._bad = LineWriter(run / "bad_samples" / f"rank-{rank}.jsonl")

    def step(self, step: int, batches: list[MicroBatch]) -> None:
        """Record the groups of a finished step, and the samples of it that were replaced."""
        for batch in batches:
            for sample_id, reason in batch.bad:
                self._bad.write({"attempt": self._attempt, "step": step, "position": batch.position,
                                 "sample_id": sample_id, "reason": reason})
            if self._groups:
                self._write_groups(self._groups, step, batch)

    def _write_groups(self, lines: LineWriter, step: int, batch: MicroBatch) -> None:
        g = batch.group_size
        for index, group_id in enumerate(batch.group_ids):
            members = slice(index * g, (index + 1) * g)
            lines.write({
                "attempt": self._attempt, "step": step, "position": batch.position + index, "group_id": group_id,
                "sample_ids": list(batch.sample_ids[members]), "checksum": checksum(batch, members)})

    def close(self) -> None:
        """Flush everything."""
        for lines in (self._groups, self._bad):
            if lines:
                lines.close()


def checksum(batch: MicroBatch, members: slice) -> str:
    """CRC-32 of everything that the model is fed of these samples: pixels, tokens, masks, classes, weights."""
    value = 0
    for name in ("pixels", "input_ids", "attention_mask", "mlm_input_ids", "mlm_labels", "image_class",
                 "caption_class", "weight"):
        value = zlib.crc32(getattr(batch, name)[members].contiguous().cpu().numpy().tobytes(), value)
    return f"{value:08x}"
