"""A tiny checkpoint folder without DeepSpeed: the file layer does not look into the shards."""
from __future__ import annotations

import random
from pathlib import Path

from pipelines.training import checkpoint
from pipelines.training.checkpoint import Manifest


def fill(run: Path, attempt: int, step: int) -> Manifest:
    """What the ranks leave in the temporary folder of `step`, and the manifest that tells of it."""
    folder = checkpoint.temporary_folder(run, step, attempt)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "a.pt").write_bytes(random.Random(step).randbytes(5_000))
    (folder / "state" / "b.pt").write_bytes(b"optimizer" * step)
    return Manifest(step=step, position=step * 32, world_size=2, zero_stage=2, attempt=attempt, seed=0, seconds=1.5,
                    config_hash="hash", code_version="0.1.0")


def make_checkpoint(run: Path, attempt: int, step: int, **facts: object) -> Path:
    """A committed checkpoint of `step`."""
    manifest = fill(run, attempt, step)
    return checkpoint.commit(run, Manifest(**{**vars(manifest), **facts}))
