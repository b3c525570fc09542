"""Bounded disk: which checkpoints stay, and whether another one fits."""
from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipelines.disk import show
from pipelines.errors import UserError
from pipelines.training import checkpoint

RESERVE = 16 * 2**20
"""Bytes left free beside a checkpoint, for metrics, logs and the manifest."""


def retain(run: Path, keep: int, keep_best: int, read: checkpoint.ReadOnce) -> None:
    """Remove every checkpoint but the newest `keep` and the `keep_best` of the highest score.

    Only those that check out count, so the last of them is never removed; damaged ones stay for whoever resumes.
    `read` knows what earlier calls have read.
    """
    valid = list(checkpoint.whole(run, read=read))
    scored = sorted((m.score, m.step) for _, m in valid if m.score is not None)
    stay = {m.step for _, m in valid[:keep]} | {step for _, step in scored[len(scored) - keep_best:]}
    for folder, manifest in valid:
        if manifest.step not in stay:
            checkpoint.remove(folder)
    read.keep(checkpoint.folders(run))


def recall(values: Mapping[str, float]) -> float | None:
    """The score of a validation: the mean of held-out i2t and t2i R@5; None where they were not measured."""
    measured = [values[f"retrieval/{way}_r5"] for way in ("i2t", "t2i") if f"retrieval/{way}_r5" in values]
    return sum(measured) / len(measured) if measured else None


def no_space(run: Path, step: int, needed: int, free: float) -> UserError:
    """The error of a checkpoint that does not fit."""
    before = max((int(folder.name.removeprefix("step-")) for folder in checkpoint.folders(run)), default=0)
    return UserError(
        f"no space for the checkpoint of step {step}: it needs {needed} bytes ({show(needed)}), "
        f"{run / 'checkpoints'} has {int(free)} bytes ({show(free)}) free; free space and run the same command again, "
        f"which continues from step {before}")


def free_bytes(run: Path) -> int:
    """Bytes free for another checkpoint."""
    return max(0, shutil.disk_usage(run).free - RESERVE)
