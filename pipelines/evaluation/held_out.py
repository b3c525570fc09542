"""Held-out evaluation, always from rest: what every task means, beside its loss."""
from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from ashnets.metrics.retrieval import chance, recalls
from ashnets.processing import Tokenizer
from ashnets.tasks.pretraining import PretrainingModel
from pipelines.config import PretrainConfig
from pipelines.evaluation.features import Features, extract
from pipelines.evaluation.pairs import Totals, pair_metrics, pair_totals
from pipelines.evaluation.rerank import reranked
from pipelines.evaluation.split import HeldOutSplit
from pipelines.evaluation.zero_shot import Categories, read_categories, zero_shot
from pipelines.feed.plan import feed_plan
from pipelines.location import Place


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: metrics by key, and what retrieval ranked by, for each split that `HeldOut.splits` names."""

    metrics: dict[str, float]
    similarity: dict[str, Float[Tensor, "I C"]]
    """ITC cosines of all images with all captions; no split without ITC."""


class HeldOut:
    """The held-out splits of a run, at most `limit` samples each (0: all)."""

    def __init__(self, config: PretrainConfig, store: Place, version: int, device: torch.device,
                 limit: int | None = None) -> None:
        self._config, self._device, self._store, self._version = config, device, store, version
        plan = feed_plan(config, "")
        self._tokenizer = Tokenizer(plan.tokenizer, plan.max_tokens)
        limit = config.evaluation.validate_samples if limit is None else limit
        names = {"retrieval": config.evaluation.retrieval_split, "retrieval_unseen": config.evaluation.unseen_split}
        self.splits = {key: HeldOutSplit(store, version, split, self._tokenizer, config.feed.image_size, limit)
                       for key, split in names.items() if split}

    def validate(self, model: PretrainingModel, rank: int = 0, world: int = 1) -> Evaluation:
        """Each rank scores its share, all get the whole; the model's mode is put back afterwards."""
        was_training = model.training
        model.eval()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.train.precision == "bf16"):
            metrics: dict[str, float] = {}
            similarity: dict[str, Tensor] = {}
            for key, split in self.splits.items():
                features = extract(model, split, self._config.evaluation.batch, self._device, rank, world)
                cosines = features.similarity()
                if cosines is not None:
                    similarity[key] = cosines
                    found = recalls(cosines, split.image_of_caption, split.caption_class, split.image_class)
                    metrics |= {f"{key}/{name}": value for name, value in found.items()}
                if key == "retrieval":
                    metrics |= self._main_split(model, split, features, rank, world)
                elif world == 1 and features.image is not None and self._categories is not None:
                    # only at the end: it reads the metadata once more
                    found = zero_shot(model, self._categories, features.image, self._tokenizer, self._device)
                    metrics |= {f"zero_shot/{name}": value for name, value in found.items()}
        model.train(was_training)
        return Evaluation(metrics, similarity)

    def chance(self) -> dict[str, float]:
        """What the same keys would show without any learning (mvm/explained: the per-unit mean rates)."""
        levels = {"itm/accuracy_random": 0.5, "itm/accuracy_hard": 0.5, "mvm/explained": 0.0}
        for key, split in self.splits.items():
            found = chance(split.image_of_caption, split.caption_class, split.image_class)
            levels |= {f"{key}/{name}": value for name, value in found.items()}
            if key == "retrieval":
                levels["stua/a2t_r5"] = found["i2t_r5"]
                first = split.first_caption
                pairs = chance(torch.arange(len(split)), split.caption_class[first], split.image_class)
                levels |= {f"retrieval_reranked/{name}": value for name, value in pairs.items()}
        if self._categories is not None:
            levels["zero_shot/top1"] = self._categories.chance
        return levels

    @cached_property
    def _categories(self) -> Categories | None:
        """What the unseen split is classified by; None without that split, or where its samples have no category."""
        split = self.splits.get("retrieval_unseen")
        return None if split is None else read_categories(
            self._store, self._version, self._config.evaluation.unseen_split, split.sample_ids)

    def _main_split(self, model: PretrainingModel, split: HeldOutSplit, features: Features, rank: int,
                    world: int) -> dict[str, float]:
        totals = pair_totals(model, split, features, self._tokenizer, self._config.tasks.mlm.mask_rate,
                             self._config.evaluation.batch, self._device)
        metrics = pair_metrics(model, sum_totals(totals))
        metrics |= {f"held_out_firing_rate/{name}": rate for name, rate in features.firing_rates.items()}
        if features.abstract is not None:
            aligned = recalls(features.abstract @ features.text_feature.T, split.image_of_caption,
                              split.caption_class, split.image_class)
            metrics["stua/a2t_r5"] = aligned["i2t_r5"]
        if self._config.evaluation.rerank and world == 1 and model.itm is not None and model.itc is not None:
            found = reranked(model, split, features, self._config.evaluation.rerank, self._device)
            metrics |= {f"retrieval_reranked/{name}": value for name, value in found.items()}
        return metrics


def sum_totals(totals: Totals) -> Totals:
    """Totals of all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return totals
    parts: list[Totals] = [totals] * dist.get_world_size()
    dist.all_gather_object(parts, totals)
    summed: Totals = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            summed[name] += value
    return summed
