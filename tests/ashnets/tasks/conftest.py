"""A micro-batch and a model small enough to differentiate in milliseconds, honouring the model's contract."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ashnets.batch import MicroBatch
from ashnets.config import AbstractConfig, FusionConfig, ModelConfig, SummaryRatioConfig, TextConfig

VOCABULARY, WIDTH, TEXT_WIDTH, LENGTH = 50, 16, 12, 6


class TinyEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)


class TinyFusion(nn.Module):
    """Mean-mixing over text and visual tokens: every state depends on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = TinyEmbeddings()
        self.mix = nn.Linear(2 * WIDTH, WIDTH)
        self.mask_token = nn.Parameter(torch.randn(WIDTH))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, visual: Tensor,
                visual_mask: Tensor | None) -> SimpleNamespace:
        if visual_mask is not None:
            visual = torch.where(visual_mask[:, :, None], self.mask_token, visual)
        text, real = self.embeddings.word_embeddings(input_ids), attention_mask[:, :, None].float()
        summary = (text * real).sum(1) / real.sum(1) + visual.square().mean(1)
        text, visual = (self.mix(torch.cat([x, summary[:, None].expand_as(x)], -1)).tanh() for x in (text, visual))
        return SimpleNamespace(cls=text[:, 0], text=text, visual=visual)


class TinyModel(nn.Module):
    """Each sample depends on its own pixels and texts alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.concrete, self.spiking = nn.Linear(3, WIDTH), nn.Linear(3, WIDTH)
        self.text = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.fusion = TinyFusion()
        self.fused: list[dict[str, Tensor | None]] = []
        self.restarts: list[Tensor | None] = []

    def encode_image(self, pixels: Tensor, group_size: int = 1, restart: Tensor | None = None) -> SimpleNamespace:
        self.restarts.append(restart)
        patches = nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 4).flatten(2).mT
        concrete = self.concrete(patches).tanh()
        if self.config.summary_ratio.off:
            return SimpleNamespace(concrete=concrete, abstract=None, rate=None, tokens=concrete, grid=(4, 4))
        rate = self.spiking(patches).sigmoid()
        return SimpleNamespace(concrete=concrete, abstract=rate, rate=rate, tokens=concrete + rate, grid=(4, 4))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        tokens, real = self.text(input_ids), attention_mask[:, :, None].float()
        return SimpleNamespace(tokens=tokens, pooled=(tokens * real).sum(1) / real.sum(1))

    def fuse(self, input_ids: Tensor, attention_mask: Tensor, visual: Tensor,
             visual_mask: Tensor | None = None) -> SimpleNamespace:
        self.fused.append({"input_ids": input_ids, "attention_mask": attention_mask, "visual": visual,
                           "visual_mask": visual_mask})
        return self.fusion(input_ids, attention_mask, visual, visual_mask)

    def firing_rates(self) -> dict[str, Tensor]:
        return {}


@pytest.fixture
def make_model() -> Callable[..., TinyModel]:
    """`make_model(ratio=1.0, carry="detach")`: a fresh tiny model, the same each time; ratio 0 has no SNN."""
    def make(ratio: float = 1.0, carry: str = "detach") -> TinyModel:
        torch.manual_seed(1)
        return TinyModel(ModelConfig(
            width=WIDTH, embedding=8, summary_ratio=SummaryRatioConfig(mode="fixed", value=ratio),
            abstract=AbstractConfig(carry=carry, restart_rate=0.5),
            text=TextConfig(width=TEXT_WIDTH, heads=2, vocab_size=VOCABULARY), fusion=FusionConfig(heads=2)))
    return make


@pytest.fixture
def make_batch() -> Callable[..., MicroBatch]:
    """`make_batch(groups, captions, **replaced)`: random, groups of two, every picture and caption its own class."""
    def make(groups: int = 4, captions: int = 1, **replaced: Tensor) -> MicroBatch:
        g = torch.Generator().manual_seed(2)
        samples = 2 * groups
        ids = torch.randint(5, VOCABULARY, (samples, captions, LENGTH), generator=g)
        attention = torch.ones_like(ids)
        attention[::2, :, -1] = 0
        masked = torch.rand(ids.shape, generator=g) < 0.3
        masked[:, :, 1] = True
        masked &= attention.bool()
        batch = MicroBatch(
            pixels=torch.randint(256, (samples, 3, 8, 8), generator=g).to(torch.uint8), input_ids=ids,
            attention_mask=attention, mlm_input_ids=ids.masked_fill(masked, 3),
            mlm_labels=ids.masked_fill(~masked, -100), image_class=torch.arange(samples) + 100,
            caption_class=torch.arange(samples * captions).view(samples, captions) + 1000,
            weight=torch.ones(samples), group_size=2)
        return replace(batch, **replaced)
    return make
