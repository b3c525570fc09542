"""What samples are compared by: so far the BERT initialisation's features of their captions (Ray Data tasks)."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import ray
import torch
from jaxtyping import Float32
from transformers.utils import logging

from ashnets.config import TextConfig
from ashnets.encoders.text import TextEncoder, checkpoint_config
from ashnets.processing import Tokenizer
from pipelines.precision import fast_dtype

BATCH = 256

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""


def describe(text: TextConfig) -> str:
    """The embedding in words, for the manifest."""
    start = "a randomly initialised BERT" if text.init == "none" else text.init
    return f"captions by {start}: mean over the tokens of the last of {text.layers} layers, then over the captions"


def check(text: TextConfig) -> None:
    """FileNotFoundError or ValueError, before work starts, where tokenizer or checkpoint is missing or another one."""
    _tokenizer(text)
    if text.init != "none":
        checkpoint_config(text)


def embed_samples(text: TextConfig, captions: Sequence[Sequence[str]], seed: int,
                  progress: Progress | None = None) -> Float32[np.ndarray, "N D"]:
    """Unit-norm mean of the features of each sample's captions; a sample without captions gets zeros.

    The feature is the mean over the tokens, whatever `text.pooling` is: a [CLS] that no contrast has trained tells
    sentences apart badly (Reimers and Gurevych 2019, table 6). Each distinct caption is embedded once, in bfloat16
    where the hardware computes in it (cosines move by .002 at most). The result is the same for every number of
    workers.
    """
    distinct = sorted({caption for several in captions for caption in several}, key=lambda c: (len(c), c))
    position = {caption: row for row, caption in enumerate(distinct)}
    features = embed_captions(text, distinct, seed, progress)
    means = np.zeros((len(captions), features.shape[1]), np.float32)
    for row, several in enumerate(captions):
        if len(several):
            means[row] = features[[position[caption] for caption in several]].mean(axis=0)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def embed_captions(text: TextConfig, captions: Sequence[str], seed: int,
                   progress: Progress | None = None) -> Float32[np.ndarray, "M D"]:
    """Unit-norm features of `captions`; batches are cut here, so sort by length to save padding.

    Tasks and not an actor pool: a worker process keeps the model from task to task all the same.
    """
    blocks = [pa.table({"row": np.arange(start, min(start + BATCH, len(captions))),
                        "caption": pa.array(captions[start:start + BATCH], pa.string())})
              for start in range(0, len(captions), BATCH)]
    data = ray.data.from_arrow(blocks)
    data.context.enable_progress_bars = False
    gpus = 1 if ray.cluster_resources().get("GPU") else None
    features = np.zeros((len(captions), text.width), np.float32)
    embedded = data.map_batches(partial(_embed_batch, text=text, seed=seed), batch_size=None, batch_format="pyarrow",
                                num_cpus=1, num_gpus=gpus)
    done = 0
    for batch in embedded.iter_batches(batch_size=None, batch_format="numpy"):
        features[batch["row"]] = batch["feature"]
        done += len(batch["row"])
        if progress is not None:
            progress("embedding captions", done, len(captions))
    return features


def _embed_batch(batch: pa.Table, text: TextConfig, seed: int) -> dict[str, np.ndarray]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, encoder = _load(text, seed, device)
    ids, mask = tokenizer(batch["caption"].to_pylist())
    longest = int(mask.sum(axis=1).max())
    input_ids, attention_mask = (torch.from_numpy(array[:, :longest]).to(device) for array in (ids, mask))
    with torch.inference_mode():
        tokens = encoder(input_ids, attention_mask).tokens.float()
    weight = attention_mask[..., None].float()
    feature = torch.nn.functional.normalize((tokens * weight).sum(dim=1) / weight.sum(dim=1), dim=-1)
    return {"row": batch["row"].to_numpy(), "feature": feature.cpu().numpy()}


@lru_cache(maxsize=1)
def _load(text: TextConfig, seed: int, device: str) -> tuple[Tokenizer, TextEncoder]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    logging.disable_progress_bar()
    return _tokenizer(text), TextEncoder(text).eval().to(device, fast_dtype(device))


def _tokenizer(text: TextConfig) -> Tokenizer:
    return Tokenizer(text.tokenizer or ("" if text.init == "none" else text.init), text.max_tokens)
