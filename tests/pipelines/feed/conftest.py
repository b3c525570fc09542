"""Fixtures of the feed's tests: a small grouped store, a tokenizer, plans over them."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config import FeedConfig
from pipelines.feed.plan import FeedPlan

from .small_stores import SmallStore, make_groups, write_groups, write_tokenizer

MakePlan = Callable[..., FeedPlan]


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """37 groups of 3 samples in two files."""
    rows = make_groups(37, 3, 24)
    return SmallStore(write_groups(tmp_path_factory.mktemp("groups") / "store", rows), rows)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer of a few words."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="session")
def make_plan(small_store: SmallStore, tokenizer_file: Path) -> MakePlan:
    """Plans over the small store (or another); keywords override fields of the plan or of its FeedConfig."""
    def make(path: Path | None = None, **changes: object) -> FeedPlan:
        feed = {"window": 3, "image_size": 16, "captions": 2, "crop_scale": 0.5}
        plan = {"seed": 7, "max_tokens": 8, "mask_rate": 0.3, "whole_word": False, "groups_per_atom": 2,
                "atoms_per_step": 3}
        for name, value in changes.items():
            (feed if name in FeedConfig.__dataclass_fields__ else plan)[name] = value
        return FeedPlan(groups_path=str(path or small_store.path), feed=FeedConfig(**feed),
                        tokenizer=str(tokenizer_file), **plan)
    return make
