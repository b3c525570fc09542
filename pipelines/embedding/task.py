"""What one Ray task embeds: some row groups of a store's file, written as one Parquet file of embeddings."""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32
from transformers.utils import logging

from ashnets.pretrained import ASHNetsModel, ASHNetsProcessor, load
from ashnets.processing import BadSample
from ashnets.zero_shot import text_encoder
from pipelines.store.parts import Part
from pipelines.store.schema import iter_batches, write_parquet

COLUMNS = ["sample_id", "image", "captions", "split"]


@dataclass(frozen=True)
class Work:
    """The same for all parts: which model, which split, where to."""

    export: Path
    folder: Path
    split: str
    batch: int


@dataclass(frozen=True)
class Done:
    """A part's rows and captions, and the samples left out: sample id -> reason; or what the user must mend."""

    part: int
    rows: int
    captions: int
    left_out: dict[str, str]
    mistake: str = ""


def schema(size: int) -> pa.Schema:
    """The columns of an embedding of `size` numbers."""
    vector = pa.list_(pa.float32(), size)
    return pa.schema([("sample_id", pa.string()), ("image_embedding", vector),
                      ("caption_embeddings", pa.list_(vector))])


def embed_part(part: Part, work: Work) -> Done:
    """Embed the rows of `part` that belong to the split; a sample without a readable image is left out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_model(str(work.export), device)
    tables: list[pa.Table] = []
    left_out: dict[str, str] = {}
    captions = 0
    for batch in iter_batches(part.file, COLUMNS, part.row_groups, rows=work.batch):
        rows = [row for row in batch.to_pylist() if not work.split or row["split"] == work.split]
        good, pixels = decode(rows, processor, left_out)
        if good:
            tables.append(_embed(good, pixels, model, processor))
            captions += sum(len(row["captions"]) for row in good)
    if tables:
        write_parquet(pa.concat_tables(tables), work.folder / f"part-{part.number:05d}.parquet")
    return Done(part.number, sum(map(len, tables)), captions, left_out)


def decode(rows: list[dict[str, Any]], processor: ASHNetsProcessor,
           left_out: dict[str, str]) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    """The rows whose image decodes and their pixels; the others go into `left_out`: sample id -> reason."""
    good, pixels = [], []
    for row in rows:
        try:
            pixels.append(processor(images=row["image"])["pixel_values"][0])
            good.append(row)
        except BadSample as error:
            left_out[row["sample_id"]] = error.reason
    return good, pixels


@torch.inference_mode()
def _embed(rows: list[dict[str, Any]], pixels: list[torch.Tensor], model: ASHNetsModel,
           processor: ASHNetsProcessor) -> pa.Table:
    images = model.encode_image(torch.stack(pixels).to(model.device)).float().cpu().numpy()
    captions = [caption for row in rows for caption in row["captions"]]
    size = images.shape[1]
    texts = (text_encoder(model, processor)(captions).float().cpu().numpy() if captions
             else np.zeros((0, size), np.float32))
    offsets = np.cumsum([0, *(len(row["captions"]) for row in rows)], dtype=np.int32)
    return pa.table([pa.array([row["sample_id"] for row in rows]), vector_column(images),
                     pa.ListArray.from_arrays(pa.array(offsets), vector_column(texts))], schema=schema(size))


def vector_column(values: Float32[np.ndarray, "N E"]) -> pa.FixedSizeListArray:
    """One vector a row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


@lru_cache(maxsize=1)
def load_model(export: str, device: str) -> tuple[ASHNetsModel, ASHNetsProcessor]:
    """The model, once a process, computing on one thread."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    model, processor = load(export)
    torch.nn.Module.to(model, device)
    return model, processor
