"""Which texts may be wrong ones, how they are drawn, and the matching loss."""
from __future__ import annotations

import torch

from ashnets.tasks.itm import ITM, allowed_negatives, choose_negatives, correct_matches


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_duplicates_and_uncounted_samples_are_never_negatives():
    pictures = torch.tensor([1, 1, 2, 3, 4])
    captions = torch.tensor([[10, 11], [12, 13], [14, 15], [16, 17], [18, 19]])
    text = torch.tensor([10, 12, 11, 16, 18])  # image 2 happens to bring a caption that image 0 has as well
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    allowed = allowed_negatives(pictures, captions, text, weight)
    assert allowed.int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 1], [1, 1, 0, 0, 1], [0] * 5, [1, 1, 1, 0, 0]]


def test_nobody_allowed_means_no_negative():
    wrong, found = choose_negatives(torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool), torch.arange(3), 1.0, gen())
    assert wrong.tolist() == [0, 1, 2] and not found.any()


def shares(hard: float, allowed: torch.Tensor, similarity: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    g, draws = gen(1), 1500
    drawn = torch.stack([choose_negatives(similarity, allowed, group, hard, g)[0] for _ in range(draws)])
    return torch.nn.functional.one_hot(drawn, len(group)).double().mean(0)


def test_random_negatives_are_even_and_hard_ones_follow_similarity_in_the_group():
    group = torch.tensor([0, 0, 0, 1, 2])
    allowed = ~torch.eye(5, dtype=torch.bool)
    allowed[0, 2] = False
    similarity = torch.randn(5, 5, generator=gen(3)) * 2
    even = allowed / allowed.sum(1, keepdim=True)
    mates = allowed & (group[:, None] == group[None])
    pool = torch.where(mates.any(1, keepdim=True), mates, allowed)  # 3 and 4 are alone in their groups
    soft = similarity.masked_fill(~pool, -torch.inf).softmax(1)
    torch.testing.assert_close(shares(0.0, allowed, similarity, group), even.double(), atol=0.05, rtol=0)
    torch.testing.assert_close(shares(1.0, allowed, similarity, group), soft.double(), atol=0.05, rtol=0)
    half = (even + soft).double() / 2
    torch.testing.assert_close(shares(0.5, allowed, similarity, group), half, atol=0.05, rtol=0)


def test_the_head_learns_from_the_right_side_of_zero():
    torch.manual_seed(0)
    itm = ITM(8)
    logits = torch.tensor([2.0, -1.0, -2.0, 3.0])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    expected = torch.nn.functional.softplus(torch.tensor([-2.0, 1.0, -2.0])).mean()
    torch.testing.assert_close(itm(logits, weight), expected)
    assert correct_matches(logits, True).tolist() == [True, False, False, True]
    assert correct_matches(logits, False).tolist() == [False, True, True, False]


def test_padding_words_do_not_reach_the_logit():
    torch.manual_seed(0)
    itm, cls, text, visual = ITM(8), torch.randn(2, 8), torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    attention = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    other = text.clone()
    other[0, 3:] = 99.0
    assert torch.equal(itm.match(cls, text, visual, attention), itm.match(cls, other, visual, attention))
