"""Ray Train around the worker loop: devices, the feed, restarts after a crash, and the driver's view of it."""
from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import ray
import ray.data
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.feed.stream import FeedDataConfig
from pipelines.training import checkpoint
from pipelines.training.job import TrainingJob
from pipelines.training.worker import train_worker

RESTARTS = 8
"""Worker-group restarts in one launch before it gives up (the same command continues later)."""


def choose_device(config: PretrainConfig) -> str:
    """`cuda` where `scaling.device` and the cluster's GPUs allow it, else `cpu`; UserError where they disagree."""
    wanted, workers = config.scaling.device, config.scaling.workers
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "gpu" and gpus < workers:
        raise UserError(f"scaling.device=gpu with scaling.workers={workers} needs as many GPUs; the cluster has "
                        f"{gpus}: lower scaling.workers, or use scaling.device=cpu")
    return "cuda" if wanted == "gpu" or (wanted == "auto" and gpus >= workers) else "cpu"


def check_cpus(config: PretrainConfig) -> None:
    """UserError unless the workers leave CPU to Ray Data: a starved feed hangs without a word."""
    cpus = ray.cluster_resources().get("CPU", 0)
    held = config.scaling.workers * config.scaling.cpus_per_worker
    if held + 1 > cpus:
        raise UserError(
            f"scaling.workers={config.scaling.workers} x scaling.cpus_per_worker={config.scaling.cpus_per_worker:g} "
            f"hold {held:g} of the cluster's {cpus:g} CPUs and leave Ray Data less than one: lower one of them")


def _start_step(run: Path) -> int:
    found = checkpoint.newest(run)
    return found[1].step if found else 0


def fit(job: TrainingJob) -> None:
    """Run the worker group until the job's stop step, restarting it after crashes; raises what ended it.

    Ray gets a fresh, disposable directory each time: which checkpoint counts is decided by ours alone.
    """
    config, on_gpu = job.config, job.device == "cuda"
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if not on_gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    run = job.run
    ray_directory = tempfile.mkdtemp(prefix="ray-train-", dir=run)
    try:
        TorchTrainer(
            train_worker,
            train_loop_config={"job": job},
            datasets={"train": ray.data.range(1)},
            dataset_config=FeedDataConfig(job.plan, lambda: _start_step(run), job.stop_step),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.scaling.workers, use_gpu=on_gpu,
                resources_per_worker={"CPU": config.scaling.cpus_per_worker} | ({"GPU": 1} if on_gpu else {})),
            run_config=RunConfig(
                name="train", storage_path=ray_directory, worker_runtime_env={"env_vars": environment},
                failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=RESTARTS)),
        ).fit()
    finally:
        shutil.rmtree(ray_directory, ignore_errors=True)
