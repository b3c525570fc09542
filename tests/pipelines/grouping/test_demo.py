"""The demo's groups: what published figures hang on stays what it is, and similar means what a person calls similar."""
from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np

from jobs import cli
from pipelines.config import DataConfig, GroupsConfig, PretrainConfig
from pipelines.grouping.build import build_groups
from pipelines.grouping.duplicates import duplicate_labels
from pipelines.grouping.partition import in_one_cell
from pipelines.store.ingest import ingest_demo
from pipelines.store.schema import read_row_groups
from pipelines.store.table import ImageTextStore

SAMPLES = 5487
"""Training samples of the demo."""


def exact_vectors() -> tuple[np.ndarray, np.ndarray]:
    """As many clustered vectors as the demo has, of sixty-fourths: every processor sums their products exactly."""
    rng = np.random.default_rng(0)
    centres = rng.integers(-6, 7, (SAMPLES // 12, 48))
    vectors = centres[rng.integers(len(centres), size=SAMPLES)] + rng.integers(-3, 4, (SAMPLES, 48))
    classes = np.arange(SAMPLES)
    copies = rng.random(SAMPLES) < 0.2
    classes[copies] = rng.integers(SAMPLES, size=int(copies.sum()))
    captions = [[int(word) // 3] for word in rng.integers(9 * SAMPLES, size=SAMPLES)]
    return (vectors[classes] / 64).astype(np.float32), duplicate_labels(classes, captions)


def test_groups_of_one_cell_stay_what_they_were() -> None:
    """The hash is of the members that the first version gave, before there were cells."""
    members, real, _ = in_one_cell(*exact_vectors(), 4, 16)
    assert real.sum() == SAMPLES
    assert hashlib.sha256(members.astype("<i8").tobytes()).hexdigest() == (
        "4bca378dc85577c17695deda629159195bf6d8f2f611e154f9ec2875d1a79910")


def test_emoji_of_one_subcategory_meet_in_groups(ray_local: ModuleType, tmp_path: Path) -> None:
    """At least three times as often as in random groups, and never two names of one drawing."""
    demo = cli.parse(PretrainConfig, [], description="", defaults_file=cli.CONFIGS / "demo.yaml").config
    ingest_demo(DataConfig(source="emoji"), tmp_path / "store", lambda *_: None)
    store = ImageTextStore(tmp_path / "store")
    built = build_groups(GroupsConfig(), demo.model.text, store, 0, tmp_path / "groups")
    rows = [row for batch in store.iter_batches(["sample_id", "metadata", "image_class"], "train")
            for row in batch.to_pylist()]
    kind = {row["sample_id"]: json.loads(row["metadata"])["subcategory"] for row in rows}
    pairs = [(a, b) for file, index, _ in built.row_groups
             for row in read_row_groups(file, [index], ["sample_ids", "real"]).to_pylist()
             for a, b in combinations([i for i, real in zip(row["sample_ids"], row["real"], strict=True) if real], 2)]
    together = sum(kind[a] == kind[b] for a, b in pairs) / len(pairs)
    by_chance = sum(n * (n - 1) for n in Counter(kind.values()).values()) / (len(kind) * (len(kind) - 1))
    assert together >= 3 * by_chance
    picture = {row["sample_id"]: row["image_class"] for row in rows}
    assert not any(picture[a] == picture[b] for a, b in pairs)
