"""What a model makes of a held-out split, from rest: embeddings on every rank, visual tokens where they were made."""
from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ashnets.tasks.pretraining import PretrainingModel
from pipelines.evaluation.split import HeldOutSplit, share

TEXT_BATCH = 256


@dataclass(frozen=True)
class Features:
    """Embeddings of all I images and C captions; tokens and rates of this rank's share of the images (`own`) only.

    Where `counts` is False the image is another rank's, run here too only to keep the ranks in step. Without ITC
    there are no embeddings, without STUA no abstract ones.
    """

    image: Float[Tensor, "I E"] | None
    text: Float[Tensor, "C E"] | None
    abstract: Float[Tensor, "I Dt"] | None
    text_feature: Float[Tensor, "C Dt"]
    own: Int64[Tensor, "O"]
    counts: Bool[Tensor, "O"]
    tokens: Float[Tensor, "O N D"]
    rate: Float[Tensor, "O N D"] | None
    grid: tuple[int, int]
    firing_rates: dict[str, float]

    def similarity(self, images: Int64[Tensor, "Q"] | slice = slice(None)) -> Float[Tensor, "Q C"] | None:
        """ITC cosines of these images (default: all) with all captions; None without ITC."""
        return None if self.image is None or self.text is None else self.image[images] @ self.text.T


def gather_rows(indices: Int64[Tensor, "O"], rows: Float[Tensor, "O E"], total: int) -> Float[Tensor, "T E"]:
    """All ranks' rows in the order of their indices; for one process, a reordering."""
    parts: list[tuple[Tensor, Tensor]] = [(indices, rows)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        parts = [(indices, rows)] * dist.get_world_size()
        dist.all_gather_object(parts, (indices, rows))
    result = torch.empty(total, *rows.shape[1:])
    for where, values in parts:
        result[where] = values
    return result


@torch.no_grad()
def extract(model: PretrainingModel, split: HeldOutSplit, batch: int, device: torch.device, rank: int = 0,
            world: int = 1) -> Features:
    """Run the model over the split's images and captions; of several ranks each takes its share."""
    columns: dict[str, list[Tensor]] = defaultdict(list)
    rates: dict[str, float] = defaultdict(float)
    grid = (0, 0)
    for indices, pixels in split.images(batch, rank, world):
        visual = model.model.encode_image(pixels.to(device))
        grid = visual.grid
        columns["own"].append(indices)
        if model.itc is not None:
            columns["image"].append(model.embed_image(visual.tokens).float().cpu())
        columns["tokens"].append(visual.tokens.float().cpu())
        if visual.abstract is not None and visual.rate is not None:
            columns["rate"].append(visual.rate.float().cpu())
            if model.stua is not None:
                columns["abstract"].append(model.stua.embed_abstract(visual.abstract).float().cpu())
            for name, rate in model.model.firing_rates().items():
                rates[name] += float(rate) * len(indices)
    own = torch.cat(columns["own"])
    captions = torch.tensor(share(len(split.captions), rank, world))
    texts, features = _encode_texts(model, split, captions, device)
    return Features(
        image=gather_rows(own, torch.cat(columns["image"]), len(split)) if columns["image"] else None,
        text=None if texts is None else gather_rows(captions, texts, len(split.captions)),
        abstract=gather_rows(own, torch.cat(columns["abstract"]), len(split)) if columns["abstract"] else None,
        text_feature=gather_rows(captions, features, len(split.captions)),
        own=own, counts=own % world == rank, tokens=torch.cat(columns["tokens"]),
        rate=torch.cat(columns["rate"]) if columns["rate"] else None, grid=grid,
        firing_rates={name: total / len(own) for name, total in rates.items()})


def _encode_texts(model: PretrainingModel, split: HeldOutSplit, captions: Int64[Tensor, "S"],
                  device: torch.device) -> tuple[Tensor | None, Tensor]:
    """ITC embeddings (None without ITC) and text features of these captions, encoded by length, which saves padding."""
    embeddings, features = [], []
    ids, masks = split.input_ids[captions], split.attention_mask[captions]
    lengths = masks.sum(dim=1)
    order = lengths.argsort(stable=True)
    for rows in order.split(TEXT_BATCH):
        longest = int(lengths[rows].max())
        pooled = model.model.encode_text(ids[rows, :longest].to(device), masks[rows, :longest].to(device)).pooled
        if model.itc is not None:
            embeddings.append(model.embed_text(pooled).float().cpu())
        features.append(torch.nn.functional.normalize(pooled.float(), dim=-1).cpu())
    place = order.argsort()
    return torch.cat(embeddings)[place] if embeddings else None, torch.cat(features)[place]
