"""What samples are compared by before there is a model: the BERT initialisation's features of their captions."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from transformers.utils import logging

from ashnets.config import TextConfig
from ashnets.encoders.text import TextEncoder, checkpoint_config
from ashnets.processing import Tokenizer
from pipelines.grouping.kept import Embed, Recipe
from pipelines.precision import fast_dtype

BATCH = 256
ROWS = 1024
"""Samples whose captions are sorted by length together."""

EmbedTexts = Callable[[Sequence[str]], Float32[np.ndarray, "M D"]]


def describe(text: TextConfig) -> str:
    """The embedding in words, for the manifest."""
    start = "a randomly initialised BERT" if text.init == "none" else text.init
    return f"captions by {start}: mean over the tokens of the last of {text.layers} layers, then over the captions"


def check(text: TextConfig) -> None:
    """FileNotFoundError or ValueError, before work starts, where tokenizer or checkpoint is missing or another one."""
    _tokenizer(text)
    if text.init != "none":
        checkpoint_config(text)


def recipe(text: TextConfig, seed: int) -> Recipe:
    """Unit-norm mean of the features of each sample's captions; a sample without captions gets zeros.

    `seed` draws the weights where `text.init` is `none`.
    """
    return Recipe("captions", _key(text, seed), text.width, "caption_embedding", ("captions",), ROWS,
                  partial(_load, text=text, seed=seed), {"text": asdict(text), "seed": seed})


def _key(text: TextConfig, seed: int) -> str:
    """Of the weights themselves: a name may come to mean another checkpoint."""
    found = hashlib.sha256(f"{text.tokenizer or text.init} {text.max_tokens}".encode())
    for name, value in sorted(_encoder(text, seed).state_dict().items()):
        found.update(name.encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def _load(device: str, text: TextConfig, seed: int) -> Embed:
    return partial(_embed_samples, embed_texts=caption_embedder(text, seed, device))


def _embed_samples(rows: list[dict[str, Any]], embed_texts: EmbedTexts) -> Float32[np.ndarray, "n D"]:
    distinct = sorted({caption for row in rows for caption in row["captions"]})
    position = {caption: number for number, caption in enumerate(distinct)}
    features = embed_texts(distinct)
    means = np.zeros((len(rows), features.shape[1]), np.float32)
    for number, row in enumerate(rows):
        if row["captions"]:
            means[number] = features[[position[caption] for caption in row["captions"]]].mean(axis=0)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


@lru_cache(maxsize=1)
def caption_embedder(text: TextConfig, seed: int, device: str) -> EmbedTexts:
    """A function that gives texts their unit-norm features, computing on one thread.

    The feature is the mean over the tokens, whatever `text.pooling` is: a [CLS] that no contrast has trained tells
    sentences apart badly (Reimers and Gurevych 2019, table 6). It computes in bfloat16 where the hardware does (cosines
    move by .002 at most).
    """
    torch.set_num_threads(1)
    encoder = _encoder(text, seed).to(device, fast_dtype(device))
    return partial(_embed_texts, tokenizer=_tokenizer(text), encoder=encoder, device=device)


@torch.inference_mode()
def _embed_texts(texts: Sequence[str], tokenizer: Tokenizer, encoder: TextEncoder, device: str,
                 ) -> Float32[np.ndarray, "M D"]:
    """In batches of texts of like length, which saves padding."""
    features = np.zeros((len(texts), encoder.bert.config.hidden_size), np.float32)
    order = sorted(range(len(texts)), key=lambda n: (len(texts[n]), texts[n]))
    for start in range(0, len(texts), BATCH):
        rows = order[start:start + BATCH]
        ids, mask = tokenizer([texts[row] for row in rows])
        longest = int(mask.sum(axis=1).max())
        input_ids, attention_mask = (torch.from_numpy(array[:, :longest]).to(device) for array in (ids, mask))
        tokens = encoder(input_ids, attention_mask).tokens.float()
        weight = attention_mask[..., None].float()
        mean = (tokens * weight).sum(dim=1) / weight.sum(dim=1)
        features[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
    return features


def _encoder(text: TextConfig, seed: int) -> TextEncoder:
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TextEncoder(text).eval()


def _tokenizer(text: TextConfig) -> Tokenizer:
    return Tokenizer(text.tokenizer or ("" if text.init == "none" else text.init), text.max_tokens)
