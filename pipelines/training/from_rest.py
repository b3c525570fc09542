"""The weights that a run is known by: running statistics recalibrated from rest, then one safetensors file."""
from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from ashnets.running_statistics import recalibrate
from pipelines.feed.batches import local_batches
from pipelines.model_source import WEIGHTS
from pipelines.training.engine import Engine, sum_over_ranks
from pipelines.training.job import TrainingJob

RECALIBRATION_ATOMS = 8


def export(engine: Engine, job: TrainingJob, step: int, rank: int, world: int) -> None:
    """Write the weights after `step` steps as they will be used: from rest (all ranks take part)."""
    recalibrate_from_rest(engine, job, rank, world)
    engine.export_weights(Path(job.run) / "export" / WEIGHTS, step)
    dist.barrier()


@torch.no_grad()
def recalibrate_from_rest(engine: Engine, job: TrainingJob, rank: int, world: int) -> None:
    """Set the running statistics to means over the stream's first steps, each sample from rest.

    All ranks together run them, so the statistics do not depend on the number of workers. The groups are those that
    training started with, which are always there.
    """
    steps = -(-RECALIBRATION_ATOMS // job.config.train.atoms_per_step)
    atoms = list(local_batches(replace(job.plan, stages=None), 0, steps, rank, world))
    engine.model.train()
    recalibrate(engine.model, [partial(engine.model.model.encode_image, atom.pixels.to(engine.device))
                               for atom in atoms], [atom.position >= 0 for atom in atoms], reduce=sum_over_ranks)
