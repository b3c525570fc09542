"""ASH-Net as a whole: sizes of the shipped configurations, independence of neighbours, what learns."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BertModel

from ashnets.config import AbstractConfig, BackboneConfig, FusionConfig, ModelConfig, SummaryRatioConfig, TextConfig
from ashnets.model import ASHNet
from jobs.cli import CONFIGS, parse
from pipelines.config import PretrainConfig

TINY = ModelConfig(width=32, backbone=BackboneConfig(name="resnet18", stem="small", image_size=32, strides=(16,)),
                   abstract=AbstractConfig(time_steps=3, channels=(8,), tdbn_alpha=2.0),
                   text=TextConfig(layers=1, width=32, heads=4, vocab_size=60),
                   fusion=FusionConfig(layers=1, heads=4))
IDS = torch.randint(1, 60, (8, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)


def pixels(batch: int = 8) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny() -> ASHNet:
    """A small network whose running statistics have seen a batch."""
    torch.manual_seed(0)
    model = ASHNet(TINY).train()
    for _ in range(20):
        model.encode_image(pixels(), 4)
    return model.eval()


def test_transformers_still_imports_bert_beside_this_torch() -> None:
    assert BertModel.config_class.model_type == "bert"  # fails at import where torchaudio does not fit torch


@pytest.mark.parametrize(("name", "total", "abstract"), [
    ("demo", 42_738_945, 1_577_856), ("base", 126_387_777, 3_345_920), ("paper", 299_141_953, 21_635_072)])
def test_shipped_configurations_build_with_exactly_these_parameters(name: str, total: int, abstract: int) -> None:
    config = parse(PretrainConfig, ["--config", str(CONFIGS / f"{name}.yaml")], description="").config.model
    offline = replace(config, backbone=replace(config.backbone, weights="none"), text=replace(config.text, init="none"))
    with torch.device("meta"):
        model = ASHNet(offline)
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.abstract.parameters()) == abstract


@pytest.mark.parametrize("neuron", ["lif", "plif", "if"])
@pytest.mark.parametrize("mode", ["learned", "per_channel", "gate", "fixed"])
def test_no_parameter_is_0_dimensional(mode: str, neuron: str) -> None:
    config = replace(TINY, summary_ratio=SummaryRatioConfig(mode=mode), abstract=replace(TINY.abstract, neuron=neuron))
    assert [name for name, p in ASHNet(config).named_parameters() if p.ndim == 0] == []


def test_features_are_what_they_are_called(tiny: ASHNet) -> None:
    features = tiny.encode_image(pixels())
    assert features.grid == (2, 2)
    assert features.tokens.shape == features.rate.shape == (8, 4, 32)
    assert torch.equal((features.rate * 3).round(), features.rate * 3) and 0.02 < features.rate.mean() < 0.98
    torch.testing.assert_close(features.abstract, torch.layer_norm(features.rate, (32,)))
    torch.testing.assert_close(features.tokens, features.concrete + features.abstract)
    rates = tiny.firing_rates()
    assert list(rates) == ["abstract.blocks.0.neurons1", "abstract.blocks.0.neurons2"]
    torch.testing.assert_close(rates["abstract.blocks.0.neurons2"], features.rate.mean())


def test_evaluation_of_an_image_knows_no_neighbours_batch_size_or_order(tiny: ASHNet) -> None:
    with torch.no_grad():
        together = tiny.encode_image(pixels()).tokens
        order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
        shuffled = tiny.encode_image(pixels()[order]).tokens
        alone = torch.cat([tiny.encode_image(image[None]).tokens for image in pixels()])
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_groups_carry_and_restarts_do_not(tiny: ASHNet) -> None:
    with torch.no_grad():
        rest, carried = tiny.encode_image(pixels()).rate, tiny.encode_image(pixels(), 4).rate
        restarted = tiny.encode_image(pixels(), 4, torch.ones(8, dtype=torch.bool)).rate
    torch.testing.assert_close(carried[::4], rest[::4])
    assert not torch.allclose(carried[1::4], rest[1::4])
    torch.testing.assert_close(restarted, rest)


def test_without_a_summary_ratio_there_is_no_snn() -> None:
    model = ASHNet(replace(TINY, summary_ratio=SummaryRatioConfig(mode="fixed", value=0.0)))
    features = model.encode_image(pixels(), 4)
    assert features.abstract is None and features.rate is None
    assert torch.equal(features.tokens, features.concrete)
    assert model.firing_rates() == {}
    assert not any("abstract" in name or "summary" in name for name, _ in model.named_parameters())


def test_max_pool_quarters_the_tokens_of_both_encoders() -> None:
    features = ASHNet(replace(TINY, concrete=replace(TINY.concrete, max_pool=True))).encode_image(pixels())
    assert features.grid == (1, 1) and features.concrete.shape == features.rate.shape == (8, 1, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_trainable_parameter_gets_a_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = ASHNet(replace(TINY, activation_checkpointing=True)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        features = model.encode_image(pixels(), 4, torch.arange(8) == 2)
        texts = model.encode_text(IDS, MASK)
        fused = model.fuse(IDS, MASK, features.tokens, torch.arange(4).expand(8, 4) == 1)
    assert features.rate.dtype == features.tokens.dtype == torch.float32
    weights = torch.randn_like(fused.visual)
    loss = (fused.visual * weights).sum() + fused.cls.square().sum() + texts.pooled.square().sum()
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
