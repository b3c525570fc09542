"""Checkpoints beside the step loop: it waits for a copy in host memory, a thread of each rank writes and commits.

The threads meet without a collective, which would get in the way of the training's own: each rank leaves a small file
that says what it wrote, and rank 0 commits when all are there.
"""
from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from pipelines.code_version import code_version
from pipelines.disk import is_full
from pipelines.files import write_atomically
from pipelines.resume import config_hash
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Digest, Manifest, ReadOnce, digest, temporary_folder
from pipelines.training.job import TrainingJob
from pipelines.training.retention import free_bytes, no_space, retain
from pipelines.training.snapshot import Shards, tensor_bytes, write

OTHER_RANKS_S = 900.0
"""How long rank 0 waits for the other ranks' shards."""
NICENESS = 10
"""Of the thread that writes; Linux counts it by thread."""


class HasShards(Protocol):
    """What the saver needs of an engine."""

    device: torch.device

    def snapshot(self, folder: Path) -> Shards:
        """This rank's shards of a checkpoint in `folder`."""


class Saver:
    """One rank's checkpoints: one at a time is on its way to the disk; the next call raises what went wrong there."""

    def __init__(self, engine: HasShards, job: TrainingJob, rank: int, world: int) -> None:
        self._engine, self._job, self._rank, self._world = engine, job, rank, world
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._read = ReadOnce()
        self._hash, self._version = (config_hash(job.config), code_version()) if rank == 0 else ("", "")

    def save(self, step: int, seconds: float, score: float | None = None) -> None:
        """Copy the state of `step` and send it on its way; all ranks call this together.

        `seconds` of training went into it; `score` is the best validation's since the last checkpoint. Raises
        UserError, on all ranks, where the disk has no space for it.
        """
        self.wait()
        job, folder = self._job, temporary_folder(self._job.run, step, self._job.attempt)
        if self._rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        if self._world > 1:
            dist.barrier()
        shards = self._engine.snapshot(folder)
        self._demand_space(step, tensor_bytes(list(shards.values())))
        manifest = Manifest(
            step=step, position=job.position(step), world_size=self._world, zero_stage=job.config.scaling.zero_stage,
            attempt=job.attempt, seed=job.config.run.seed, seconds=seconds, config_hash=self._hash,
            code_version=self._version, score=score)
        self._thread = threading.Thread(target=self._finish, args=(folder, shards, manifest), daemon=True,
                                        name=f"checkpoint-{step}")
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong in the background."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until this rank has nothing left to write (rank 0: until the last checkpoint is committed)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _demand_space(self, step: int, mine: int) -> None:
        needed = torch.tensor([float(mine)], dtype=torch.float64, device=self._engine.device)
        free = torch.tensor([float(free_bytes(self._job.run))], dtype=torch.float64, device=self._engine.device)
        if self._world > 1:
            dist.all_reduce(needed)
            dist.all_reduce(free, op=dist.ReduceOp.MIN)
        if float(needed) > float(free):
            raise no_space(self._job.run, step, int(needed), float(free))

    def _finish(self, folder: Path, shards: Shards, manifest: Manifest) -> None:
        # Of this thread alone: where training keeps all cores busy, it goes first.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            write(shards)
            written = {str(path.relative_to(folder)): digest(path) for path in shards}
            write_atomically(folder / f"rank-{self._rank}.done", json.dumps(written).encode())
            if self._rank == 0:
                files = self._all_ranks(folder)
                final = checkpoint.commit(self._job.run, replace(manifest, files=files))
                for name, found in files.items():
                    self._read.know(final / name, found)
                settings = self._job.config.checkpoint
                retain(self._job.run, settings.keep, settings.keep_best, self._read)
        except BaseException as error:  # raised again by the training thread
            self._error = no_space(self._job.run, manifest.step, tensor_bytes(list(shards.values())),
                                   free_bytes(self._job.run)) if is_full(error) else error
            for path in shards:
                path.unlink(missing_ok=True)
            if self._rank == 0:
                shutil.rmtree(folder, ignore_errors=True)

    def _all_ranks(self, folder: Path) -> dict[str, Digest]:
        """The files of all ranks, once all have written theirs."""
        notes = [folder / f"rank-{rank}.done" for rank in range(self._world)]
        deadline = time.monotonic() + OTHER_RANKS_S
        while missing := [note.stem for note in notes if not note.exists()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder}: {', '.join(missing)} did not write within {OTHER_RANKS_S:.0f} s")
            time.sleep(0.02)
        files: dict[str, Digest] = {}
        for note in notes:
            files |= {name: (size, sha256) for name, (size, sha256) in json.loads(note.read_text()).items()}
            note.unlink()
        return files
