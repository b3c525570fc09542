"""The figures of the report against their definitions, written out."""
from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pipelines.grouping import quality
from pipelines.grouping.partition import in_one_cell
from pipelines.grouping.quality import bounds, member_cosines, random_groups, report, useful_cosine


@pytest.mark.parametrize("chunk", [3, 1000])
def test_cosines_count_useful_pairs_of_real_samples_only(vectors_and_labels, monkeypatch: pytest.MonkeyPatch,
                                                         chunk: int) -> None:
    monkeypatch.setattr(quality, "CHUNK", chunk)
    vectors, labels = vectors_and_labels(41, duplicates=0.9)
    groups = np.random.default_rng(0).permutation(44).reshape(11, 4)
    real = groups < 41
    groups = np.where(real, groups, groups % 41 - 1)
    found = member_cosines(vectors, labels, groups, real)
    pairs: list[float] = []
    clashes = 0
    for group, members in enumerate(groups):
        each: list[list[float]] = [[] for _ in members]
        for a, b in combinations(range(4), 2):
            shared = bool(set(labels[members[a]].tolist()) & set(labels[members[b]].tolist()) - {-1})
            clashes += shared
            if real[group, a] and real[group, b]:
                cosine = 0.0 if shared else float(vectors[members[a]] @ vectors[members[b]])
                pairs.append(cosine)
                each[a].append(cosine)
                each[b].append(cosine)
        for place, cosines in enumerate(each):
            if cosines:
                assert found[group, place] == pytest.approx(np.mean(cosines), abs=1e-5)
            else:
                assert np.isnan(found[group, place])
    assert clashes
    assert useful_cosine(vectors, labels, groups, real) == (pytest.approx(np.mean(pairs), abs=1e-5), clashes)


def test_the_bound_is_the_mean_of_the_nearest_of_another_class(vectors_and_labels) -> None:
    vectors, labels = vectors_and_labels(60, duplicates=0.5)
    groups, real, cosines = in_one_cell(vectors, labels, 4, 16)
    for row, bound in enumerate(bounds(cosines, 4)):
        others = sorted((float(vectors[row] @ vectors[other]) for other in range(60)
                         if other != row and not set(labels[row].tolist()) & set(labels[other].tolist()) - {-1}),
                        reverse=True)[:3]
        assert bound == pytest.approx(np.mean(np.maximum(others, 0)), abs=1e-5)
    told = report(vectors, labels, cosines, groups, real, 0)
    assert told["bound"] == pytest.approx(float(bounds(cosines, 4).mean()))
    assert told["random"] < told["in_group"] <= told["bound"]
    assert not bounds(cosines, 1).any()


def test_random_groups_hold_nobody_twice() -> None:
    groups = random_groups(23, 4, 0)
    assert groups.shape == (5, 4) and len(np.unique(groups)) == 20
