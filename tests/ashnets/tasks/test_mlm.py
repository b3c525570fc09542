"""The masked language modelling head: against torch's cross-entropy over all positions, and its tied words."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ashnets.tasks.mlm import MLM


def head(frozen: bool = False) -> MLM:
    torch.manual_seed(0)
    words = nn.Embedding(20, 8)
    words.weight.requires_grad_(not frozen)
    return MLM(words)


def test_the_loss_is_cross_entropy_over_masked_positions():
    mlm, states = head(), torch.randn(3, 5, 8)
    labels = torch.full((3, 5), -100)
    labels[0, 1], labels[0, 2], labels[2, 4] = 3, 7, 19
    expected = F.cross_entropy(mlm.predict(states).flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(mlm(states, labels, torch.ones(3)), expected)
    only_third = F.cross_entropy(mlm.predict(states[2]), labels[2], ignore_index=-100)
    torch.testing.assert_close(mlm(states, labels, torch.tensor([0.0, 1.0, 1.0])), only_third)


def test_the_decoder_is_the_word_embedding():
    mlm, states, labels = head(), torch.randn(1, 2, 8), torch.tensor([[3, -100]])
    assert sum(p.numel() for p in mlm.parameters()) == 20 * 8 + 20 + 8 * 8 + 8 + 2 * 8
    mlm(states, labels, torch.ones(1)).backward()
    assert mlm.decoder.weight.grad.abs().sum() > 0
    frozen = head(frozen=True)
    frozen(states, labels, torch.ones(1)).backward()
    assert frozen.decoder.weight.grad is None and frozen.decoder.bias.grad.abs().sum() > 0


def test_it_counts_right_words():
    mlm, states = head(), torch.randn(2, 3, 8)
    best = mlm.predict(states).argmax(-1)
    labels = torch.tensor([[0, -100, 0], [-100, 0, -100]])
    labels[0, 0], labels[0, 2], labels[1, 1] = best[0, 0], (best[0, 2] + 1) % 20, best[1, 1]
    assert mlm.correct_words(states, labels).tolist() == [True, False, True]
