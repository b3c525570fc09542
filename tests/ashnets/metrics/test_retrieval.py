"""Recall at k against a brute-force oracle written query by query, ties and duplicates included."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ashnets.metrics.retrieval import chance, recalls

KS = (1, 2, 5)


def is_match(image, caption, owner, words, pictures):
    """Some caption with these words belongs to a picture like this one."""
    return any(words[c] == words[caption] and pictures[owner[c]] == pictures[image] for c in range(len(owner)))


def oracle(similarity, owner, words, pictures):
    """Sorts each query's candidates with every match behind the non-matches of equal score."""
    found = {}
    images, captions = range(len(pictures)), range(len(owner))
    queries = {"i2t": [[(similarity[i][c], is_match(i, c, owner, words, pictures)) for c in captions] for i in images],
               "t2i": [[(similarity[i][c], is_match(i, c, owner, words, pictures)) for i in images] for c in captions]}
    for way, rows in queries.items():
        ranked = [sorted(row, key=lambda pair: (-pair[0], pair[1])) for row in rows]
        for k in KS:
            # A second match ahead of a hit takes no place from it: only the first match matters.
            found[f"{way}_r{k}"] = sum(any(match for _, match in row[:k]) for row in ranked) / len(rows)
    return found


@st.composite
def problems(draw):
    images = draw(st.integers(1, 6))
    owner = list(range(images)) + draw(st.lists(st.integers(0, images - 1), max_size=8))
    owner = draw(st.permutations(owner))
    words = draw(st.lists(st.integers(0, 6), min_size=len(owner), max_size=len(owner)))
    pictures = draw(st.lists(st.integers(0, 4), min_size=images, max_size=images))
    score = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    similarity = [draw(st.lists(score, min_size=len(owner), max_size=len(owner))) for _ in range(images)]
    return similarity, owner, words, pictures


@settings(max_examples=200, deadline=None)
@given(problems())
def test_recalls_equal_brute_force(problem):
    similarity, owner, words, pictures = problem
    ours = recalls(torch.tensor(similarity), torch.tensor(owner), torch.tensor(words), torch.tensor(pictures), KS)
    assert ours == pytest.approx(oracle(similarity, owner, words, pictures))


def test_the_karpathy_protocol_by_hand():
    """Two images with two captions each; image 0 finds its second caption first, image 1 finds its own third."""
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.8, 0.7, 0.6, 0.3]])
    found = recalls(similarity, torch.tensor([0, 0, 1, 1]), torch.arange(4), torch.arange(2), (1, 2, 3))
    assert found == {"i2t_r1": 0.5, "i2t_r2": 0.5, "i2t_r3": 1.0, "t2i_r1": 0.75, "t2i_r2": 1.0, "t2i_r3": 1.0}


def test_ties_and_nan_count_against_us():
    classes = torch.arange(3), torch.arange(3), torch.arange(3)
    assert set(recalls(torch.zeros(3, 3), *classes, (1, 2)).values()) == {0.0}
    assert set(recalls(torch.full((3, 3), torch.nan), *classes, (1, 2)).values()) == {0.0}
    assert set(recalls(torch.eye(3), *classes, (1,)).values()) == {1.0}


def test_repeated_captions_and_pictures_are_matches():
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    owner = torch.arange(2)
    different, same = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    assert recalls(swapped, owner, different, different, (1,))["i2t_r1"] == 0
    assert recalls(swapped, owner, same, different, (1,)) == {"i2t_r1": 1.0, "t2i_r1": 1.0}
    assert recalls(swapped, owner, different, same, (1,)) == {"i2t_r1": 1.0, "t2i_r1": 1.0}


def test_an_image_without_a_caption_is_refused():
    with pytest.raises(ValueError, match="caption for every image"):
        recalls(torch.zeros(2, 1), torch.tensor([0]), torch.tensor([0]), torch.arange(2))


def test_chance_is_what_random_scores_give():
    owner, words = torch.arange(30) % 10, torch.arange(30) % 23
    pictures = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8])
    g = torch.Generator().manual_seed(0)
    totals: dict[str, float] = {}
    for _ in range(400):
        for name, value in recalls(torch.rand(10, 30, generator=g), owner, words, pictures).items():
            totals[name] = totals.get(name, 0.0) + value / 400
    expected = chance(owner, words, pictures)
    assert totals == pytest.approx(expected, abs=0.02)
    plain = chance(torch.arange(512), torch.arange(512), torch.arange(512))
    assert plain["i2t_r5"] == pytest.approx(5 / 512) and plain["t2i_r10"] == pytest.approx(10 / 512)
    assert chance(torch.arange(3), torch.arange(3), torch.arange(3))["i2t_r10"] == 1.0
