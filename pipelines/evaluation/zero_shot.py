"""Zero-shot classification of a held-out split by the categories that the store's metadata names."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ashnets.processing import Tokenizer
from ashnets.tasks.pretraining import PretrainingModel
from ashnets.zero_shot import accuracy, class_embeddings, classify
from pipelines.location import Place
from pipelines.store.table import ImageTextStore


@dataclass(frozen=True)
class Categories:
    """The category of each sample of a split that has one: `truth` counts in `names`, `rows` in the split."""

    names: tuple[str, ...]
    rows: Int64[Tensor, "Z"]
    truth: Int64[Tensor, "Z"]

    @property
    def chance(self) -> float:
        """The share of the most frequent category: what always naming it would score."""
        return float(self.truth.bincount().max()) / len(self.truth)


def read_categories(store: Place, version: int, split: str, sample_ids: Sequence[str]) -> Categories | None:
    """The `category` in the metadata of the named samples; None where there are not two different ones."""
    row_of = {sample_id: row for row, sample_id in enumerate(sample_ids)}
    found: dict[int, str] = {}
    for batch in ImageTextStore(store).iter_batches(["sample_id", "metadata"], split, version):
        for sample_id, metadata in zip(*(batch[name].to_pylist() for name in ("sample_id", "metadata")), strict=True):
            category = _category(metadata) if sample_id in row_of else None
            if category:
                found[row_of[sample_id]] = category
    names = sorted(set(found.values()))
    if len(names) < 2:
        return None
    rows = sorted(found)
    return Categories(tuple(names), torch.tensor(rows), torch.tensor([names.index(found[row]) for row in rows]))


def zero_shot(model: PretrainingModel, categories: Categories, images: Float[Tensor, "I E"], tokenizer: Tokenizer,
              device: torch.device) -> dict[str, float]:
    """`top1` of the split's image embeddings against the names of the categories."""
    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        ids, mask = (torch.from_numpy(array).to(device) for array in tokenizer(texts))
        return model.embed_text(model.model.encode_text(ids, mask).pooled).float().cpu()

    scores = classify(images[categories.rows].cpu(), class_embeddings(encode, categories.names))
    return accuracy(scores, categories.truth, ks=(1,))


def _category(metadata: str | None) -> str | None:
    """The category in words (`animals-and-nature` reads `animals and nature`), or None where none is given."""
    try:
        category = json.loads(metadata or "{}")["category"]
    except (ValueError, KeyError, TypeError):
        return None
    return category.replace("-", " ") if isinstance(category, str) else None
