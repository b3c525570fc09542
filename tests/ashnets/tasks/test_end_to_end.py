"""The five tasks on a small real ASHNet."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ashnets.batch import MicroBatch
from ashnets.config import (
    AbstractConfig,
    BackboneConfig,
    FusionConfig,
    ITCConfig,
    ITMConfig,
    ModelConfig,
    MVMConfig,
    SummaryRatioConfig,
    TasksConfig,
    TextConfig,
)
from ashnets.model import ASHNet
from ashnets.tasks.itm import correct_matches
from ashnets.tasks.mvm import explained
from ashnets.tasks.pretraining import PretrainingModel


def pretraining_model(ratio: float = 1.0, frozen: str = "none") -> PretrainingModel:
    torch.manual_seed(0)
    config = ModelConfig(
        width=32, embedding=16, backbone=BackboneConfig(image_size=32, stem="small", strides=(16,), frozen=frozen),
        abstract=AbstractConfig(time_steps=2, channels=(16,)), summary_ratio=SummaryRatioConfig("fixed", ratio),
        text=TextConfig(layers=1, width=24, heads=2, vocab_size=50, max_tokens=6),
        fusion=FusionConfig(layers=1, heads=2, dropout=0.0))
    return PretrainingModel(ASHNet(config), TasksConfig(
        fusion_share=0.5, itc=ITCConfig(memory=8), itm=ITMConfig(hard_ramp=0.0), mvm=MVMConfig(dictionary_size=16)))


@pytest.mark.parametrize("ratio", [1.0, 0.0])
def test_every_trainable_parameter_gets_a_finite_gradient(make_batch, ratio):
    pretraining, batch = pretraining_model(ratio), make_batch(captions=2)
    output = pretraining(batch, 0.5, torch.Generator().manual_seed(0))
    output.loss.backward()
    assert set(output.losses) == {"itc", "itm", "mlm", "mvm"} | ({"stua"} if ratio else set())
    assert bool(output.firing_rates) == bool(ratio)
    for name, parameter in pretraining.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    pretraining.after_step([output.updates])
    assert pretraining.itc.memory_weight.sum() == 8


def test_a_padding_micro_batch_moves_nothing(make_batch):
    pretraining, batch = pretraining_model(), make_batch()
    output = pretraining(replace(batch, weight=torch.zeros(8)), 0.5, torch.Generator().manual_seed(0))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in pretraining.parameters())


def test_stua_reaches_the_spiking_side_only(make_batch):
    pretraining, batch = pretraining_model(), make_batch()
    visual = pretraining.model.encode_image(batch.pixels, batch.group_size)
    text = pretraining.model.encode_text(batch.input_ids.flatten(0, 1), batch.attention_mask.flatten(0, 1))
    pretraining.stua(visual.abstract, text.pooled, batch).backward()
    reached = {name for name, p in pretraining.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("model.abstract.") for name in reached)
    assert not any(name.startswith(("model.text.", "model.fusion.", "model.concrete.")) for name in reached)


def mvm_explained(pretraining: PretrainingModel, batch: MicroBatch) -> float:
    visual = pretraining.model.encode_image(batch.pixels, batch.group_size)
    targets = pretraining.mvm.targets(visual)
    mask = pretraining.mvm.mask(targets, visual.grid, torch.Generator().manual_seed(0))
    fused = pretraining.model.fuse(batch.mlm_input_ids[:, 0], batch.attention_mask[:, 0], visual.tokens, mask)
    losses = pretraining.mvm.token_losses(fused.visual[mask], targets[mask])
    return explained(losses.mean().item(), pretraining.mvm.reference(
        pretraining.mvm.frequencies(targets[mask]), len(losses)))


def test_eight_pairs_are_learned_by_heart(make_batch):
    """MVM by its explained share: its raw loss rises while the spike code gets richer."""
    pretraining, batch = pretraining_model(frozen="all"), make_batch()
    optimizer = torch.optim.AdamW((p for p in pretraining.parameters() if p.requires_grad), lr=3e-3)
    losses, before = [], mvm_explained(pretraining, batch)
    for step in range(40):
        output = pretraining(batch, step / 40, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.losses)
    first, last = ({name: torch.stack([part[name] for part in parts]).mean().item() for name in losses[0]}
                   for parts in (losses[:5], losses[-5:]))
    for name, share in (("itc", 0.2), ("stua", 0.4), ("mlm", 0.8), ("itm", 0.8)):
        assert last[name] < share * first[name], (name, first, last)
    assert mvm_explained(pretraining, batch) > before + 0.1
    ids, attention = batch.input_ids[:, 0], batch.attention_mask[:, 0]
    visual = pretraining.model.encode_image(batch.pixels, batch.group_size)
    text = pretraining.model.encode_text(ids, attention)
    similarity = pretraining.embed_image(visual.tokens) @ pretraining.embed_text(text.pooled).T
    assert (similarity.argmax(1) == torch.arange(8)).sum() >= 7
    right = sum(int(correct_matches(pretraining.match(pretraining.model.fuse(i, a, visual.tokens), a), matched).sum())
                for i, a, matched in ((ids, attention, True), (ids.roll(1, 0), attention.roll(1, 0), False)))
    assert right >= 12
