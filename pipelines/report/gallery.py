"""Retrieval in pictures: what the finished model ranked first for some held-out queries, right or wrong."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ashnets.metrics.retrieval import best_ranks, matches
from pipelines.evaluation.split import HeldOutSplit
from pipelines.report.pictures import thumbnail

SHOWN = 5
SEED = 3


@dataclass(frozen=True)
class Candidate:
    """One answer to a query: its row, its score (a cosine), whether it is right."""

    index: int
    score: float
    right: bool


@dataclass(frozen=True)
class Example:
    """A query with its best candidates, best first; `rank` is that of its best right answer, from 1."""

    query: int
    rank: int
    candidates: tuple[Candidate, ...]
    answer: Candidate
    """The best right answer, shown by itself where it is not among the candidates."""


@dataclass(frozen=True)
class Gallery:
    """One split, one direction, ready to be shown: pictures and captions by index."""

    title: str
    by_image: bool
    """Pictures ask and captions answer; else the other way round."""
    hits: tuple[Example, ...]
    misses: tuple[Example, ...]
    queries: int
    first: int
    """Queries with a right answer in the first place."""
    pictures: dict[int, str]
    captions: dict[int, str]
    """The captions that take part."""
    described: dict[int, str]
    """A caption of each picture that takes part, for its alternative text."""


def examples(similarity: Float[Tensor, "Q C"], match: Bool[Tensor, "Q C"], count: int, seed: int = SEED
             ) -> tuple[tuple[Example, ...], tuple[Example, ...], int]:
    """At most `count` queries answered rightly in the first place, as many that were not, and how many were.

    Drawn at random by `seed`; misses come the deepest rank last. Ties count against us, as in the metrics.
    """
    ranks = best_ranks(similarity, match)
    order = torch.randperm(len(ranks), generator=torch.Generator().manual_seed(seed))
    drawn = [order[(ranks[order] == 0) == hit][:count].tolist() for hit in (True, False)]
    hits, misses = ([_example(query, similarity[query], match[query], int(ranks[query])) for query in queries]
                    for queries in drawn)
    return tuple(hits), tuple(sorted(misses, key=lambda miss: miss.rank)), int((ranks == 0).sum())


def _example(query: int, scores: Float[Tensor, "C"], right: Bool[Tensor, "C"], rank: int) -> Example:
    wrong_first = right.int().argsort(stable=True)  # equal scores: the wrong ones lead
    order = wrong_first[scores[wrong_first].argsort(descending=True, stable=True)]
    best = order[right[order]][0]
    candidates = [Candidate(int(c), float(scores[c]), bool(right[c])) for c in [*order[:SHOWN], best]]
    return Example(query, rank + 1, tuple(candidates[:-1]), candidates[-1])


def galleries(title: str, split: HeldOutSplit, similarity: Float[Tensor, "I C"], count: int) -> tuple[Gallery, Gallery]:
    """Image to text and text to image of one split, with pictures."""
    match = matches(split.image_of_caption, split.caption_class, split.image_class)
    by_image, by_text = examples(similarity, match, count), examples(similarity.T, match.T, count)
    images = {example.query for example in (*by_image[0], *by_image[1])} | _answers(*by_text[0], *by_text[1])
    pictures = {index: thumbnail(image) for index, image in split.encoded(images).items()}
    described = {index: split.captions[int(split.first_caption[index])] for index in images}
    captions = {index: split.captions[index] for index in
                {example.query for example in (*by_text[0], *by_text[1])} | _answers(*by_image[0], *by_image[1])}
    return (Gallery(f"{title}: image to text", True, *by_image[:2], len(similarity), by_image[2], pictures, captions,
                    described),
            Gallery(f"{title}: text to image", False, *by_text[:2], len(match.T), by_text[2], pictures, captions,
                    described))


def _answers(*shown: Example) -> set[int]:
    return {candidate.index for example in shown for candidate in (*example.candidates, example.answer)}
