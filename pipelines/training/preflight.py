"""What would make a run fail or hang, checked before anything starts: the model, the cluster, the device."""
from __future__ import annotations

import os
from pathlib import Path

from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.store.table import ImageTextStore


def check_writable(run: Path) -> None:
    """UserError unless the run's folder can be made and written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        writable = os.access(run, os.W_OK)
    except OSError as error:
        raise UserError(f"run.storage: {run} cannot be made ({error.strerror}); name a writable folder") from error
    if not writable:
        raise UserError(f"run.storage: {run} is not writable; name a writable folder")


def check_model(config: PretrainConfig) -> None:
    """UserError unless the model can be built here, with its initial weights and tokenizer."""
    from ashnets.processing import Tokenizer
    from pipelines.feed.plan import feed_plan
    from pipelines.training.model import build_model
    try:
        plan = feed_plan(config, "")
        Tokenizer(plan.tokenizer, plan.max_tokens)
        build_model(config)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


def check_cpus(config: PretrainConfig) -> None:
    """UserError unless the workers leave CPU to Ray Data: a starved feed hangs without a word."""
    import ray
    cpus = ray.cluster_resources().get("CPU", 0)
    held = config.scaling.workers * config.scaling.cpus_per_worker
    if held + 1 > cpus:
        raise UserError(
            f"scaling.workers={config.scaling.workers} x scaling.cpus_per_worker={config.scaling.cpus_per_worker:g} "
            f"hold {held:g} of the cluster's {cpus:g} CPUs and leave Ray Data less than one: lower one of them")


def choose_device(config: PretrainConfig) -> str:
    """`cuda` where `scaling.device` and the cluster's GPUs allow it, else `cpu`; UserError where they disagree."""
    import ray
    wanted, workers = config.scaling.device, config.scaling.workers
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "gpu" and gpus < workers:
        raise UserError(f"scaling.device=gpu with scaling.workers={workers} needs as many GPUs; the cluster has "
                        f"{gpus}: lower scaling.workers, or use scaling.device=cpu")
    return "cuda" if wanted == "gpu" or (wanted == "auto" and gpus >= workers) else "cpu"


def check_splits(config: PretrainConfig, store: ImageTextStore, version: int) -> None:
    """UserError unless the store has samples to train on and every split that is evaluated."""
    wanted = {"train": "the training split", config.evaluation.retrieval_split: "evaluation.retrieval_split",
              config.evaluation.unseen_split: "evaluation.unseen_split"}
    for split, key in wanted.items():
        if split and not store.count(split, version):
            raise UserError(f"data.store={store.path}: version {version} has no samples of split {split!r} ({key}): "
                            "ingest some, or name another split")


def check_same_world(config: PretrainConfig, run: Path) -> None:
    """UserError where the newest checkpoint was written by another number of workers (its shards do not fit)."""
    from pipelines.training import checkpoint
    found = checkpoint.newest(run)
    if found and found[1].world_size != config.scaling.workers:
        raise UserError(f"run {run.name} was checkpointed by scaling.workers={found[1].world_size}, not by "
                        f"{config.scaling.workers}: resume on as many workers, or use another run.name")
