"""Too many bad samples end a launch, a few do not, and a short start is not judged."""
from __future__ import annotations

import pytest

from pipelines.errors import UserError
from pipelines.training.bad_share import BadShare


def test_the_share_is_of_all_samples_of_the_launch() -> None:
    share = BadShare(0.01)
    for _ in range(100):
        share.step(1, 100)
    with pytest.raises(UserError, match=r"102 of 10100 samples were bad \(1.0%, feed.max_bad_share=0.01\)"):
        share.step(2, 100)


def test_the_first_samples_are_not_judged() -> None:
    share = BadShare(0.01)
    share.step(500, 999)
    with pytest.raises(UserError, match="500 of 1000"):
        share.step(0, 1)


def test_a_limit_of_one_allows_everything_and_of_zero_nothing() -> None:
    BadShare(1).step(5000, 5000)
    BadShare(0).step(0, 5000)
    with pytest.raises(UserError):
        BadShare(0).step(1, 5000)
