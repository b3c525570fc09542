"""Masks of visual tokens, both targets of masked vision modelling, and the share explained."""
from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ashnets.config import MVMConfig
from ashnets.tasks.dictionary import DictionaryMVM, index_mask
from ashnets.tasks.mvm import SpikeMVM, block_mask, explained


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 0.99), st.floats(0.01, 1.0), st.integers(0, 99))
def test_a_block_mask_is_never_empty_capped_and_made_of_blocks(height, width, rate, cap, seed):
    mask = block_mask(6, (height, width), rate, cap, gen(seed))
    assert mask.shape == (6, height * width) and mask.dtype == torch.bool
    counts = mask.sum(1)
    assert (counts >= 1).all() and (counts <= max(1, cap * height * width)).all()
    if int(cap * height * width) >= 4 and min(height, width) >= 2:
        grid = mask.view(6, 1, height, width).float()
        blocks = F.avg_pool2d(grid, 2, stride=1) == 1
        covered = F.conv_transpose2d(blocks.float(), torch.ones(1, 1, 2, 2)) > 0
        assert torch.equal(covered, grid.bool())
    assert torch.equal(mask, block_mask(6, (height, width), rate, cap, gen(seed)))


def test_block_masks_hit_their_rate_and_every_place():
    mask = block_mask(4000, (14, 14), 0.15, 0.5, gen())
    assert 0.12 < mask.float().mean() < 0.16
    assert block_mask(500, (4, 4), 0.15, 0.5, gen()).any(0).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), st.floats(0.01, 1.0), st.integers(0, 99))
def test_an_index_mask_is_never_empty_capped_and_of_one_index(samples, tokens, entries, cap, seed):
    indices = torch.randint(entries, (samples, tokens), generator=gen(seed))
    mask = index_mask(indices, cap, gen(seed))
    room = max(1, int(cap * tokens))
    for row, index in zip(mask, indices, strict=True):
        chosen = index[row].unique()
        assert len(chosen) == 1
        assert int(row.sum()) == min(room, int((index == chosen).sum()))


def test_the_spike_loss_is_binary_cross_entropy_with_rates_at_masked_tokens():
    torch.manual_seed(0)
    mvm, states, rates = SpikeMVM(8, MVMConfig()), torch.randn(3, 4, 8), torch.rand(3, 4, 8)
    mask = block_mask(3, (2, 2), 0.3, 0.5, gen())
    p = torch.sigmoid(mvm.head(states))
    by_hand = -(rates * p.log() + (1 - rates) * (1 - p).log()).mean(-1)
    weight = torch.tensor([1.0, 0.0, 1.0])
    expected = by_hand[weight > 0][mask[weight > 0]].mean()
    torch.testing.assert_close(mvm(states, rates, mask, weight), expected, rtol=1e-4, atol=1e-5)
    assert torch.sigmoid(mvm.head[-1].bias).mean().item() == pytest.approx(0.0759, abs=1e-3)


def test_targets_are_cut_from_the_graph():
    rate, tokens = torch.rand(2, 4, 8, requires_grad=True), torch.rand(2, 4, 8, requires_grad=True)
    visual = SimpleNamespace(rate=rate, tokens=tokens)
    assert not SpikeMVM(8, MVMConfig()).targets(visual).requires_grad
    assert not DictionaryMVM(8, MVMConfig(dictionary_size=5)).targets(visual).requires_grad


def test_explained_is_zero_for_the_best_constants_negative_below_and_positive_above():
    mvm, rates = SpikeMVM(6, MVMConfig()), torch.rand(500, 6, generator=gen()) * torch.linspace(0, 1, 6)
    reference = mvm.reference(mvm.frequencies(rates), len(rates))

    def loss(predicted):
        return float(F.binary_cross_entropy(predicted.double(), rates.double()))

    constant = rates.mean(0, keepdim=True).expand_as(rates)
    assert explained(loss(constant), reference) == pytest.approx(0, abs=1e-6)
    assert explained(loss(constant.clamp(min=0.02) * 0.8), reference) < 0
    assert explained(loss(rates), reference) > 0.1
    assert math.isnan(explained(0.0, SpikeMVM.reference(torch.zeros(3), 4)))


def test_explained_for_entries_is_zero_for_their_shares():
    mvm, targets = DictionaryMVM(8, MVMConfig(dictionary_size=4)), torch.tensor([0, 0, 0, 1, 1, 3])
    shares = torch.tensor([3.0, 2.0, 0.0, 1.0]) / 6
    expected = F.nll_loss(shares.log().expand(6, 4), targets).item()
    assert mvm.reference(mvm.frequencies(targets), 6) == pytest.approx(expected)


def clustered(mvm: DictionaryMVM, seed: int, centres: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(4, 6, centres.shape[1], generator=gen(seed)) * 0.1
    return (centres[torch.randint(len(centres), (4, 6), generator=gen(seed))] + noise) * 3


def test_the_dictionary_is_the_moving_average_of_its_tokens():
    torch.manual_seed(0)
    mvm = DictionaryMVM(8, MVMConfig(dictionary_size=5, dictionary_decay=0.4))
    before, tokens = mvm.sums.clone(), torch.randn(2, 3, 8)
    targets = mvm.targets(SimpleNamespace(tokens=tokens))
    cosines = F.cosine_similarity(tokens[:, :, None], mvm.sums, dim=-1)
    assert torch.equal(targets, cosines.argmax(-1))
    sums = mvm.statistics(tokens, targets, torch.tensor([1.0, 0.0]))
    assert torch.equal(mvm.sums, before)
    mvm.update(sums)
    for entry in range(5):
        mine = F.normalize(tokens[0][targets[0] == entry], dim=-1)
        expected = 0.4 * before[entry] + 0.6 * mine.sum(0) if len(mine) else before[entry]
        torch.testing.assert_close(mvm.sums[entry], expected)


def test_dictionary_entries_find_clusters_and_the_head_can_learn_them():
    torch.manual_seed(0)
    mvm = DictionaryMVM(16, MVMConfig(dictionary_size=12))
    centres = F.normalize(torch.randn(3, 16), dim=-1)

    def fit():
        tokens = clustered(mvm, 99, centres)
        entries = F.normalize(mvm.sums, dim=-1)
        return (F.normalize(tokens, dim=-1) @ entries.T).amax(-1).mean()

    start = fit()
    optimizer = torch.optim.Adam(mvm.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        tokens = clustered(mvm, step, centres)
        targets = mvm.targets(SimpleNamespace(tokens=tokens))
        loss = mvm(tokens, targets, mvm.mask(targets, (2, 3), gen(step)), torch.ones(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mvm.update(mvm.statistics(tokens, targets, torch.ones(4)))
        losses.append(loss.item())
    assert start < 0.75 < 0.9 < fit()
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
