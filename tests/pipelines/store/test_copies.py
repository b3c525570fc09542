"""Copies of pictures: the same verdicts as comparing every pair gives."""
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.store.copies import Pictures, find_copies
from pipelines.store.similar import NEAR_BITS, first_similar

CENTRES = np.random.default_rng(0).integers(0, 2**63, 6).tolist()


@st.composite
def pictures(draw: st.DrawFn) -> Pictures:
    rows = draw(st.lists(st.tuples(st.sampled_from(CENTRES), st.sets(st.integers(0, 63), max_size=4),
                                   st.integers(0, 5), st.booleans()), max_size=12))
    hashes = [centre ^ sum(1 << bit for bit in bits) for centre, bits, _, _ in rows]
    return Pictures(np.array([row[2] for row in rows], np.int64), np.array(hashes, np.uint64),
                    np.array([row[3] for row in rows], bool))


def near(a: np.uint64, b: np.uint64) -> bool:
    return (int(a) ^ int(b)).bit_count() <= NEAR_BITS


@settings(max_examples=200, deadline=None)
@given(pictures(), pictures())
def test_verdicts_equal_those_of_every_pair(new: Pictures, known: Pictures) -> None:
    found = find_copies(new, known)
    for j in range(len(new.classes)):
        before = [(known.classes[i], known.hashes[i]) for i in range(len(known.classes))]
        before += [(new.classes[i], new.hashes[i]) for i in range(len(new.classes))
                   if (new.train[i], i) < (new.train[j], j)]
        exact = any(c == new.classes[j] for c, _ in before)
        similar = any(near(h, new.hashes[j]) for _, h in before)
        assert found.exact[j] == exact and found.near[j] == (similar and not exact)
        leaked = any(known.train[i] and (known.classes[i] == new.classes[j] or near(known.hashes[i], new.hashes[j]))
                     for i in range(len(known.classes)))
        assert found.leaked[j] == (leaked and not new.train[j])


def test_no_pair_is_missed_among_many_random_hashes() -> None:
    generator = np.random.default_rng(1)
    hashes = generator.integers(0, 2**64, 3000, np.uint64)
    for i in range(0, 3000, 2):
        flips = generator.choice(64, generator.integers(0, 7), replace=False)
        hashes[i + 1] = hashes[i] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0))
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = (distance <= NEAR_BITS).argmax(1)
    for start in (0, 1, 1500, 2999, 3000):
        assert (first_similar(hashes, start) == expected[start:]).all()
