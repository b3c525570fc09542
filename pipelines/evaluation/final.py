"""The end of a launch: the exported weights, loaded anew and scored on held-out data."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ashnets.tasks.pretraining import PretrainingModel
from ashnets.weights_file import load_weights
from pipelines.evaluation.held_out import Evaluation, HeldOut
from pipelines.training.job import TrainingJob
from pipelines.training.model import build_model


@dataclass(frozen=True)
class Final:
    """What a launch ends with."""

    model: PretrainingModel
    """On the job's device, in evaluation mode."""
    held_out: HeldOut
    evaluation: Evaluation
    samples: int
    """The most samples of a split that were scored; 0: all."""


def evaluate_export(job: TrainingJob) -> Final:
    """Load the exported weights and evaluate them.

    A run that was stopped before its schedule's end is scored on the samples of its validations.
    """
    device = torch.device(job.device)
    model = build_model(job.config)
    load_weights(model, job.run / "export" / "model.safetensors")
    model.to(device).eval()
    settings, finished = job.config.evaluation, job.stop_step == job.schedule_steps
    samples = settings.final_samples if finished else settings.validate_samples
    held_out = HeldOut(job.config, job.store, job.store_version, device, samples)
    return Final(model, held_out, held_out.validate(model), samples)
