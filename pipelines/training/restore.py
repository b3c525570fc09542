"""Where training goes on: rank 0 decides from which checkpoint, all ranks load it, however many workers wrote it."""
from __future__ import annotations

import shutil
from pathlib import Path

import torch.distributed as dist

from pipelines.disk import is_full
from pipelines.errors import UserError
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Manifest
from pipelines.training.engine import Engine
from pipelines.training.job import TrainingJob
from pipelines.training.universal import convert

UNIVERSAL = ".tmp-universal"
"""Folder in checkpoints/ for the converted form: a temporary one, so that nobody takes it for a checkpoint."""


def restore(engine: Engine, job: TrainingJob, rank: int) -> Manifest | None:
    """Load the newest checkpoint that checks out into `engine`; its manifest, or None where there is none.

    Damaged checkpoints are set aside. All ranks call this; only rank 0 decides, so that all load the same.
    """
    found: list[tuple[Path, Manifest] | None] = [checkpoint.resume_point(job.run, job.attempt) if rank == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found, device=engine.device)
    if found[0] is None:
        return None
    folder, manifest = found[0]
    if engine.reads(manifest.world_size, manifest.zero_stage):
        engine.load(folder)
    else:
        _load_converted(engine, folder, rank)
    return manifest


def _load_converted(engine: Engine, folder: Path, rank: int) -> None:
    converted = folder.with_name(UNIVERSAL)
    try:
        if rank == 0:
            convert(folder / "state", converted / "state", engine.trainable_names())
    except Exception as error:
        shutil.rmtree(converted, ignore_errors=True)
        if is_full(error):
            raise UserError(f"no space beside {folder} to convert it for other workers or another ZeRO stage: free "
                            "about twice its size, or resume with what wrote it") from error
        raise
    if dist.is_initialized():
        dist.barrier()
    engine.load_universal(converted)
    if dist.is_initialized():
        dist.barrier()
    if rank == 0:
        shutil.rmtree(converted)
