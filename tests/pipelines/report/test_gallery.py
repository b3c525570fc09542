"""The retrieval gallery agrees with the metric, query by query."""
from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from ashnets.metrics.retrieval import best_ranks
from ashnets.processing import BadSample
from pipelines.report.gallery import SHOWN, examples
from pipelines.report.pictures import SIDE, thumbnail


def made(queries: int = 40, answers: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    match = torch.zeros(queries, answers, dtype=torch.bool)
    match[torch.arange(queries), torch.randint(answers, (queries,), generator=generator)] = True
    similarity = torch.randn(queries, answers, generator=generator) + 1.5 * match
    return similarity.mul(2).round().div(2), match  # rounded: many ties


def test_hits_and_misses_are_those_of_the_metric():
    similarity, match = made()
    ranks = best_ranks(similarity, match)
    hits, misses, first = examples(similarity, match, 1000)
    assert {hit.query for hit in hits} == set((ranks == 0).nonzero().ravel().tolist())
    assert {miss.query for miss in misses} == set((ranks > 0).nonzero().ravel().tolist())
    assert first == len(hits)
    assert [miss.rank for miss in misses] == sorted(miss.rank for miss in misses)


def test_an_example_shows_the_best_answers_with_ties_against_us():
    similarity, match = made()
    ranks = best_ranks(similarity, match)
    for example in [one for some in examples(similarity, match, 1000)[:2] for one in some]:
        scores = similarity[example.query]
        assert example.rank == ranks[example.query] + 1
        assert [c.score for c in example.candidates] == scores.sort(descending=True).values[:SHOWN].tolist()
        assert all(c.score == scores[c.index] and c.right == match[example.query, c.index] for c in example.candidates)
        places = [place for place, c in enumerate(example.candidates, 1) if c.right]
        assert places[:1] == ([example.rank] if example.rank <= SHOWN else [])
        assert example.answer.right and example.answer.score == scores[match[example.query]].max()


def test_the_draw_is_bounded_and_repeats():
    similarity, match = made()
    first = examples(similarity, match, 3)
    assert len(first[0]) == len(first[1]) == 3 and first == examples(similarity, match, 3)
    assert examples(similarity, match, 3, seed=9) != first


def test_all_right_and_fewer_answers_than_places():
    hits, misses, first = examples(torch.eye(2), torch.eye(2, dtype=torch.bool), 5)
    assert len(hits) == first == 2 and not misses and len(hits[0].candidates) == 2


def encoded(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("size", "expected"), [((640, 320), (SIDE, SIDE // 2)), ((40, 50), (40, 50))])
def test_a_thumbnail_is_small_and_keeps_its_shape(size: tuple[int, int], expected: tuple[int, int]):
    kind, data = thumbnail(encoded(*size)).split(",")
    assert kind == "data:image/webp;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == expected
    red, green, _ = image.convert("RGB").getpixel((5, 5))  # type: ignore[misc]
    assert red > 180 and green < 60


def test_a_damaged_picture_is_bad():
    with pytest.raises(BadSample):
        thumbnail(encoded(20, 20)[:60])
