"""The groups gallery: which groups are shown, and by what they are compared."""
from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.groups import best_middle_worst, mean_cosine


@given(st.lists(st.floats(-1, 1), max_size=40), st.integers(1, 5))
def test_best_middle_and_worst_are_disjoint_and_in_order(similarities: list[float], each: int):
    chosen = best_middle_worst(similarities, each)
    indices = list(itertools.chain(*chosen.values()))
    assert len(indices) == len(set(indices)) == (3 * min(each, len(similarities) // 3) or len(similarities))
    values = [similarities[index] for index in indices]
    assert values == sorted(values, reverse=True)
    if len(similarities) >= 3:
        assert max(similarities) == values[0] and min(similarities) == values[-1]


def test_the_middle_is_the_median():
    assert best_middle_worst([0.5, 0.1, 0.9, 0.3, 0.7], 1) == {"most alike": [2], "middling": [0], "least alike": [1]}


def test_mean_cosine_is_that_of_the_pairs():
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    assert mean_cosine(a) == pytest.approx((0.6 + 0.0 + 0.8) / 3)
    assert mean_cosine(a[:1]) == 1
