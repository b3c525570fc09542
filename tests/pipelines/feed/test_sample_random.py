"""The random numbers of a sample: of its whole key, and even and unrelated from one sample to the next."""
from __future__ import annotations

import numpy as np

from pipelines.feed.sample_random import sample_generator


def test_numbers_are_the_same_for_ever() -> None:
    """A change of these numbers changes what a run that exists will see after its next restart."""
    assert sample_generator("augmentation", 7, 3, "a", 0).integers(0, 1000, 4).tolist() == [25, 206, 377, 964]


def test_every_part_of_the_key_counts() -> None:
    keys = [("x", 1, 2, "a", 0), ("y", 1, 2, "a", 0), ("x", 2, 1, "a", 0), ("x", 1, 2, "b", 0), ("x", 1, 2, "a", 1),
            ("x", 12, 2, "a", 0), ("x", 1, 22, "a", 0), ("x", 1, 2, "0\x00a", 0)]
    assert len({sample_generator(*key).integers(0, 2**62) for key in keys}) == len(keys)


def test_first_numbers_of_neighbours_are_even_and_unrelated() -> None:
    first = np.array([sample_generator("x", 0, 0, str(i)).random(2) for i in range(20_000)])
    counts = np.histogram2d(*first.T, bins=10, range=((0, 1), (0, 1)))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 149  # chi-squared, 99 degrees of freedom, p = .001
    steps = np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]
    assert abs(steps) < 4 / np.sqrt(len(first))
