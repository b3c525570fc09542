"""Ray Train around the worker loop: devices, the feed, restarts after a crash, and the driver's view of it."""
from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import ray.data
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.errors import FinalError, UserError
from pipelines.feed.shards import FeedDataConfig
from pipelines.training import checkpoint
from pipelines.training.failure import EndAtOnce
from pipelines.training.job import TrainingJob
from pipelines.training.watchdog import remove_empty

RESTARTS = 3
"""Worker-group restarts in one launch before it gives up (the same command continues later). Starts that fail are
counted apart, and twice as many are allowed: Ray still counts a node that has just died, and waits for it in vain."""

RESIZE_S = 30.0
"""How often elastic training looks whether nodes have come, at most: a change of size repeats the steps since the last
checkpoint."""


def _start_step(run: Path) -> int:
    found = checkpoint.newest(run)
    return found[1].step if found else 0


def _train_worker(settings: dict[str, TrainingJob]) -> None:
    from pipelines.training.worker import train_worker  # in the worker only: the driver needs no DeepSpeed

    train_worker(settings)


def fit(job: TrainingJob) -> None:
    """Run the worker group until the job's stop step, restarting it after deaths; raises what ended it: at once
    UserError or FinalError with the worker's message, ray.train.TrainingFailedError after too many deaths.

    Ray gets a fresh, disposable directory each time: which checkpoint counts is decided by ours alone.
    """
    config, on_gpu = job.config, job.device == "cuda"
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if not on_gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    run = job.run
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(2 * config.scaling.stall_timeout_s))
    for left_by_a_killed_driver in run.glob("ray-train-*"):
        shutil.rmtree(left_by_a_killed_driver, ignore_errors=True)
    ray_directory = tempfile.mkdtemp(prefix="ray-train-", dir=run)
    try:
        TorchTrainer(
            _train_worker,
            train_loop_config={"job": job},
            datasets={name: ray.data.range(1) for name in job.plan.streams(0, job.stop_step)},
            dataset_config=FeedDataConfig(job.plan, lambda: _start_step(run), job.stop_step),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.scaling.workers, use_gpu=on_gpu, elastic_resize_monitor_interval_s=RESIZE_S,
                resources_per_worker={"CPU": config.scaling.cpus_per_worker} | ({"GPU": 1} if on_gpu else {})),
            run_config=RunConfig(
                name="train", storage_path=ray_directory, worker_runtime_env={"env_vars": environment},
                callbacks=[EndAtOnce()],
                failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=2 * RESTARTS)),
        ).fit()
    except ControllerError as error:
        if isinstance(error.controller_failure, UserError | FinalError):
            raise error.controller_failure from None
        raise
    finally:
        shutil.rmtree(ray_directory, ignore_errors=True)
        remove_empty(run)
