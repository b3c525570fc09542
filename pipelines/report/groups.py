"""The training groups in pictures: of a random sample of groups the most alike, middling ones and the least alike."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ashnets.processing import BadSample
from ashnets.tasks.pretraining import PretrainingModel
from pipelines.feed.plan import FeedPlan
from pipelines.grouping.materialise import GroupedStore
from pipelines.report.pictures import thumbnail
from pipelines.store.schema import read_row_groups

ROW_GROUPS = 4
MAX_GROUPS = 64
SEED = 5
COLUMNS = ["group_id", "sample_ids", "images", "captions", "real"]


@dataclass(frozen=True)
class ShownGroup:
    """A group: pictures as data URIs, the first caption of each, and how alike the captions are.

    Either is empty where there is none: the feed replaces such a sample, and the report shows it.
    """

    group_id: int
    similarity: float
    pictures: tuple[str, ...]
    captions: tuple[str, ...]
    copies: tuple[bool, ...]
    """Which members only fill the group up."""


def shown_groups(model: PretrainingModel, plan: FeedPlan, each: int) -> dict[str, list[ShownGroup]]:
    """`each` groups of the most, the middling and the least alike among at most MAX_GROUPS random ones.

    Alike: the mean cosine of the captions' features by the model's text encoder.
    """
    rows = sample_groups(plan.store())
    similarities = [_similarity(model, plan, row) for row in rows]
    return {title: [shown_group(rows[index], similarities[index]) for index in indices]
            for title, indices in best_middle_worst(similarities, each).items()}


def sample_groups(store: GroupedStore) -> list[dict[str, Any]]:
    """Random groups, from a few random row groups so that little is read."""
    draw = np.random.default_rng(SEED)
    places = store.row_groups
    chosen = draw.choice(len(places), min(ROW_GROUPS, len(places)), replace=False)
    rows = [row for place in sorted(chosen.tolist())
            for row in read_row_groups(places[place][0], [places[place][1]], COLUMNS).to_pylist()]
    return [rows[index] for index in sorted(draw.permutation(len(rows))[:MAX_GROUPS].tolist())]


def best_middle_worst(similarities: list[float], each: int) -> dict[str, list[int]]:
    """Indices of the `each` most alike, middling and least alike, none twice; fewer where there are not enough."""
    order = sorted(range(len(similarities)), key=lambda index: -similarities[index])
    each = min(each, len(order) // 3)
    if not each:
        return {"all": order}
    middle = (len(order) - each) // 2
    return {"most alike": order[:each], "middling": order[middle:middle + each], "least alike": order[-each:]}


@torch.no_grad()
def _similarity(model: PretrainingModel, plan: FeedPlan, row: dict[str, Any]) -> float:
    texts = [captions[0] for captions, real in zip(row["captions"], row["real"], strict=True)
             if real and captions]
    if not texts:
        return 0.0
    ids, mask = (torch.from_numpy(array) for array in plan.load_tokenizer()(texts))
    device = next(model.parameters()).device
    return mean_cosine(model.model.encode_text(ids.to(device), mask.to(device)).pooled)


def mean_cosine(features: Float[Tensor, "G D"]) -> float:
    """Mean cosine of all pairs of different rows; 1 for a single row."""
    if len(features) < 2:
        return 1.0
    cosines = torch.nn.functional.cosine_similarity(features[:, None].float(), features[None].float(), dim=-1)
    return float(cosines[~torch.eye(len(features), dtype=torch.bool, device=cosines.device)].mean())


def shown_group(row: dict[str, Any], similarity: float) -> ShownGroup:
    """A row of the grouped store, to look at."""
    return ShownGroup(row["group_id"], similarity, tuple(_picture(image) for image in row["images"]),
                      tuple(captions[0] if captions else "" for captions in row["captions"]),
                      tuple(not real for real in row["real"]))


def _picture(image: bytes) -> str:
    try:
        return thumbnail(image)
    except BadSample:
        return ""
