"""What the fusion understands of held-out pairs: ITM, MLM and MVM by their meaning, with totals that ranks can add."""
from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ashnets.model import VisualFeatures
from ashnets.processing import Tokenizer
from ashnets.tasks.itm import correct_matches
from ashnets.tasks.mlm import IGNORED
from ashnets.tasks.mvm import explained
from ashnets.tasks.pretraining import PretrainingModel
from pipelines.evaluation.features import Features
from pipelines.evaluation.split import HeldOutSplit
from pipelines.feed.masking import DRAWS, mask_tokens
from pipelines.feed.order import generator

Totals = defaultdict[str, float]
"""Counts and sums by name."""

SEED = 7
"""Seed of the evaluation's own draws: negatives, masks."""


def wrong_texts(split: HeldOutSplit, own: Int64[Tensor, "O"], similarity: Float[Tensor, "O C"] | None
                ) -> dict[str, Int64[Tensor, "O"]]:
    """For each image a `random` wrong caption, and the `hard` one that ITC finds most similar (where there is ITC).

    A caption is wrong where its words are not among those of the image's picture.
    """
    described = [split.caption_class[split.image_class[split.image_of_caption] == split.image_class[i]]
                 for i in own.tolist()]
    allowed = torch.stack([~torch.isin(split.caption_class, words) for words in described])
    noise = torch.rand(split.image_of_caption.shape[0], generator=torch.Generator().manual_seed(SEED))
    drawn = torch.stack([noise.roll(int(i)) for i in own.tolist()])
    wrong = {"random": drawn.masked_fill(~allowed, -1).argmax(1)}
    if similarity is not None:
        wrong["hard"] = similarity.masked_fill(~allowed, -torch.inf).argmax(1)
    return wrong


@torch.no_grad()
def pair_totals(model: PretrainingModel, split: HeldOutSplit, features: Features, tokenizer: Tokenizer,
                mask_rate: float, batch: int, device: torch.device) -> Totals:
    """Counts and sums over this rank's images, each with its first caption, for `pair_metrics`."""
    totals: Totals = defaultdict(float)
    wrong = wrong_texts(split, features.own, features.similarity(features.own))
    true_text = split.first_caption[features.own]
    other_image = torch.arange(len(features.own)).roll(1)
    for at in range(0, len(features.own), batch):
        rows = slice(at, at + batch)
        tokens, counts = features.tokens[rows].to(device), features.counts[rows].to(device)
        if model.itm is not None:
            for name, texts in {"true": true_text, **wrong}.items():
                ids, attention = split.input_ids[texts[rows]].to(device), split.attention_mask[texts[rows]].to(device)
                logits = model.match(model.model.fuse(ids, attention, tokens, None), attention)
                totals[f"itm/{name}"] += float(correct_matches(logits, name == "true")[counts].sum())
            totals["pairs"] += float(counts.sum())
        if model.mlm is not None:
            _add_mlm(totals, model, split, true_text[rows], counts, tokens,
                     features.tokens[other_image[rows]].to(device), tokenizer, mask_rate)
        if model.mvm is not None:
            _add_mvm(totals, model, split, features, rows, true_text[rows], device)
    return totals


def _add_mlm(totals: Totals, model: PretrainingModel, split: HeldOutSplit, texts: Int64[Tensor, "B"],
             counts: Bool[Tensor, "B"], right: Float[Tensor, "B N D"], wrong: Float[Tensor, "B N D"],
             tokenizer: Tokenizer, mask_rate: float) -> None:
    assert model.mlm is not None
    draws = np.stack([generator("held-out masks", SEED, t).random((DRAWS, tokenizer.max_tokens))
                      for t in texts.tolist()])
    masked, predicted = mask_tokens(split.input_ids[texts].numpy(), split.attention_mask[texts].numpy(), tokenizer,
                                    mask_rate, False, draws)
    ids, labels = torch.from_numpy(masked).to(right.device), torch.from_numpy(predicted).to(right.device)
    labels = labels.masked_fill(~counts[:, None], IGNORED)
    attention = split.attention_mask[texts].to(right.device)
    for name, tokens in (("right", right), ("wrong", wrong)):
        states = model.model.fuse(ids, attention, tokens, None).text
        totals[f"mlm/{name}"] += float(model.mlm.correct_words(states, labels).sum())
    totals["mlm/words"] += float((labels != IGNORED).sum())


def _add_mvm(totals: Totals, model: PretrainingModel, split: HeldOutSplit, features: Features, rows: slice,
             texts: Int64[Tensor, "B"], device: torch.device) -> None:
    """Losses of masked tokens, and the targets' sums, of which the best constant prediction is made."""
    assert model.mvm is not None
    tokens = features.tokens[rows].to(device)
    rate = None if features.rate is None else features.rate[rows].to(device)
    targets = model.mvm.targets(VisualFeatures(concrete=tokens, abstract=None, rate=rate, tokens=tokens,
                                               grid=features.grid))
    mask = torch.cat([  # drawn by the sample, so that it depends on neither the batch nor the number of ranks
        model.mvm.mask(targets[i:i + 1], features.grid, torch.Generator().manual_seed(SEED + index))
        for i, index in enumerate(features.own[rows].tolist())])
    fused = model.model.fuse(split.input_ids[texts].to(device), split.attention_mask[texts].to(device),
                             tokens, mask)
    mask = mask & features.counts[rows].to(device)[:, None]
    losses = model.mvm.token_losses(fused.visual[mask], targets[mask])
    totals["mvm/loss"] += float(losses.double().sum())
    totals["mvm/tokens"] += len(losses)
    for unit, value in enumerate(model.mvm.frequencies(targets[mask]).tolist()):
        totals[f"mvm/frequency/{unit}"] += value


def pair_metrics(model: PretrainingModel, totals: Totals) -> dict[str, float]:
    """Accuracies from summed totals; a decision about a pair counts half true pairs, half wrong ones."""
    metrics: dict[str, float] = {}
    if totals["pairs"]:
        for name in ("random", "hard") if "itm/hard" in totals else ("random",):
            metrics[f"itm/accuracy_{name}"] = (totals["itm/true"] + totals[f"itm/{name}"]) / (2 * totals["pairs"])
    if totals["mlm/words"]:
        for name in ("right", "wrong"):
            metrics[f"mlm/accuracy_{name}_image"] = totals[f"mlm/{name}"] / totals["mlm/words"]
    if totals["mvm/tokens"] and model.mvm is not None:
        units = sum(key.startswith("mvm/frequency/") for key in totals)
        frequencies = torch.tensor([totals[f"mvm/frequency/{unit}"] for unit in range(units)])
        reference = model.mvm.reference(frequencies, totals["mvm/tokens"])
        metrics["mvm/explained"] = explained(totals["mvm/loss"] / totals["mvm/tokens"], reference)
    return metrics
