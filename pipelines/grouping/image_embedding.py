"""What a trained model sees in the images: its ITC embeddings."""
from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from ashnets.pretrained import ASHNetsModel, ASHNetsProcessor
from ashnets.weights_file import trained_steps
from pipelines.embedding.task import decode, load_model
from pipelines.grouping.kept import Embed, Recipe
from pipelines.model_source import CONFIG, WEIGHTS


def weights_hash(export: Path) -> str:
    """SHA-256 of the model's weights."""
    with open(export / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(export: Path) -> str:
    """The embedding in words, for the manifest."""
    steps = trained_steps(export / WEIGHTS)
    return f"images by a trained model's ITC projection ({'unknown' if steps is None else steps} steps)"


def recipe(export: Path, batch: int) -> Recipe:
    """Unit-norm image embeddings by the model of `export`, `batch` images at once; zeros where one does not decode.

    Its `load` raises a user's mistake where the weights do not fit their configuration or are broken.
    """
    key = weights_hash(export)
    size = int(json.loads((export / CONFIG).read_text())["model"]["embedding"])
    return Recipe("images", key, size, "image_embedding", ("image",), batch, partial(_load, export=export),
                  {"model": str(export), "weights_sha256": key})


def _load(device: str, export: Path) -> Embed:
    return partial(_embed, *load_model(str(export), device), device=device)


@torch.inference_mode()
def _embed(model: ASHNetsModel, processor: ASHNetsProcessor, rows: list[dict[str, Any]], device: str,
           ) -> Float32[np.ndarray, "n E"]:
    vectors = np.zeros((len(rows), int(model.config.model["embedding"])), np.float32)
    good, pixels = decode(rows, processor, {})
    if good:
        place = {row["sample_id"]: number for number, row in enumerate(rows)}
        embedded = model.encode_image(torch.stack(pixels).to(device)).float().cpu().numpy()
        vectors[[place[row["sample_id"]] for row in good]] = embedded
    return vectors
