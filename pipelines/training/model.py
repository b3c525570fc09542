"""The model of a run with its initial weights."""
from __future__ import annotations

import torch

from ashnets.model import ASHNet
from ashnets.tasks.pretraining import PretrainingModel
from pipelines.config import PretrainConfig
from pipelines.training.randomness import derive


def build_model(config: PretrainConfig) -> PretrainingModel:
    """The pre-training model, with the same initial weights on every rank and in every launch."""
    torch.manual_seed(derive(config.run.seed, "weights"))
    return PretrainingModel(ASHNet(config.model), config.tasks)
