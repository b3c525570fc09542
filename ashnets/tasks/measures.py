"""What the fused tasks have learned, on held-out pairs: accuracies and explained share instead of losses."""
from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ashnets.batch import MicroBatch
from ashnets.encoders.text import TextFeatures
from ashnets.fusion import FusedFeatures
from ashnets.metrics.explained import explained_share
from ashnets.model import VisualFeatures
from ashnets.tasks.itm import allowed_negatives, choose_negatives, correct_matches
from ashnets.tasks.pretraining import PretrainingModel


@torch.no_grad()
def measure(pretraining: PretrainingModel, batch: MicroBatch, visual: VisualFeatures, text: TextFeatures,
            generator: torch.Generator) -> dict[str, Tensor]:
    """Sums over a micro-batch of pairs (the first caption of each image) that add up over batches and ranks.

    `visual` holds the B images' features from rest, `text` those of the first captions. Each task is asked alone:
    ITM sees whole pairs, MLM masked text with the whole right or wrong image, MVM the whole text with masked visual
    tokens. Wrong partners come from the same batch: drawn evenly, or hard ones by ITC from the group or else the
    batch. Put the model into evaluation mode first.
    """
    random = _partners(pretraining, batch, visual, text, 0.0, generator)
    hard = _partners(pretraining, batch, visual, text, 1.0, generator)
    sums: dict[str, Tensor] = {}
    if pretraining.itm:
        sums |= {"itm/accuracy_random": _matching(pretraining, batch, visual, *random),
                 "itm/accuracy_hard": _matching(pretraining, batch, visual, *hard)}
    if pretraining.mlm:
        partner, found = random
        own = torch.arange(len(partner), device=partner.device)
        sums |= {"mlm/accuracy_right_image": _words(pretraining, batch, visual, own, found),
                 "mlm/accuracy_wrong_image": _words(pretraining, batch, visual, partner, found)}
    if pretraining.mvm:
        sums |= _vision(pretraining, batch, visual, generator)
    return sums


def summarise(pretraining: PretrainingModel, sums: dict[str, Tensor]) -> dict[str, float]:
    """Metrics from summed `measure`s: `itm/accuracy_*`, `mlm/accuracy_*`, `mvm/explained`."""
    metrics = {name: float(value[0] / value[1]) for name, value in sums.items() if "/accuracy_" in name}
    if pretraining.mvm:
        loss, tokens = sums["mvm/loss"].tolist()
        constant = pretraining.mvm.reference(sums["mvm/frequencies"] / tokens)
        metrics["mvm/explained"] = explained_share(loss / tokens, constant)
    return metrics


def _partners(pretraining: PretrainingModel, batch: MicroBatch, visual: VisualFeatures, text: TextFeatures,
              hard: float, generator: torch.Generator) -> tuple[Int64[Tensor, "B"], Tensor]:
    """A wrong partner for every sample, and whether there is one."""
    captions = batch.caption_class
    allowed = allowed_negatives(batch.image_class, captions, captions[:, 0], batch.weight)
    similarity = allowed.float()
    if pretraining.itc:
        image, caption = pretraining.embed_image(visual.tokens), pretraining.embed_text(text.pooled)
        similarity = image @ caption.T / pretraining.itc.temperature
    group = torch.arange(len(allowed), device=allowed.device) // batch.group_size
    return choose_negatives(similarity, allowed, group, hard, generator)


def _fuse(pretraining: PretrainingModel, batch: MicroBatch, ids: Int64[Tensor, "B K L"], tokens: Tensor,
          text: Int64[Tensor, "B"], visual_mask: Tensor | None = None) -> FusedFeatures:
    return pretraining.model.fuse(ids[text, 0], batch.attention_mask[text, 0], tokens, visual_mask)


def _matching(pretraining: PretrainingModel, batch: MicroBatch, visual: VisualFeatures,
              partner: Int64[Tensor, "B"], found: Tensor) -> Float[Tensor, "2"]:
    """Right decisions and decisions, over as many true as wrong pairs (chance: one half)."""
    own, right = torch.arange(len(partner), device=partner.device), torch.zeros((), device=partner.device)
    for text, matched in ((own, True), (partner, False)):
        fused = _fuse(pretraining, batch, batch.input_ids, visual.tokens, text)
        logits = pretraining.match(fused, batch.attention_mask[text, 0])
        right = right + (correct_matches(logits, matched) & found).sum()
    return torch.stack([right, 2.0 * found.sum()]).double()


def _words(pretraining: PretrainingModel, batch: MicroBatch, visual: VisualFeatures, image: Int64[Tensor, "B"],
           counts: Tensor) -> Float[Tensor, "2"]:
    """Masked words guessed right and masked words, with the given images beside the texts."""
    assert pretraining.mlm is not None
    own = torch.arange(len(image), device=image.device)
    fused = _fuse(pretraining, batch, batch.mlm_input_ids, visual.tokens[image], own)
    right = pretraining.mlm.correct_words(fused.text[counts], batch.mlm_labels[counts, 0])
    return torch.stack([right.sum(), torch.tensor(right.numel(), device=right.device)]).double()


def _vision(pretraining: PretrainingModel, batch: MicroBatch, visual: VisualFeatures,
            generator: torch.Generator) -> dict[str, Tensor]:
    """Summed loss and number of masked tokens, and the summed targets."""
    assert pretraining.mvm is not None
    targets = pretraining.mvm.targets(visual)
    mask = pretraining.mvm.mask(targets, visual.grid, generator)
    own = torch.arange(len(mask), device=mask.device)
    fused = _fuse(pretraining, batch, batch.input_ids, visual.tokens, own, mask)
    mask = mask & (batch.weight > 0)[:, None]
    losses = pretraining.mvm.token_losses(fused.visual[mask], targets[mask])
    return {"mvm/loss": torch.stack([losses.double().sum(), torch.tensor(losses.numel(), device=losses.device)]),
            "mvm/frequencies": pretraining.mvm.frequencies(targets[mask])}
