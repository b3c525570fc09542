"""A small real store to group, and clustered vectors with duplicates."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.grouping.duplicates import duplicate_labels
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore

COLOURS, THINGS = ("red", "green", "blue", "grey", "white"), ("apple", "dog", "car", "guitar", "whale", "hat", "tree")


def clustered(samples: int, width: int = 16, duplicates: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around a few centres, and their duplicate labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((samples // 8 + 1, width))
    vectors = centres[rng.integers(len(centres), size=samples)] + 0.5 * rng.standard_normal((samples, width))
    classes = np.arange(samples)
    copies = rng.random(samples) < duplicates
    classes[copies] = rng.integers(samples, size=int(copies.sum()))
    vectors = vectors[classes]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), duplicate_labels(classes, [[] for _ in classes])


def store_table(samples: int, split: str = "train", image_bytes: int = 50) -> pa.Table:
    """Rows of a store: two captions each, distinct random bytes for images, ids in no order."""
    rng = np.random.default_rng(samples)
    rows = [{
        "sample_id": f"{split}/{number:05d}", "source": "test", "split": split,
        "image": number.to_bytes(4, "big") + rng.bytes(image_bytes), "width": 1, "height": 1, "sha256": "",
        "image_class": number, "batch_id": "", "metadata": "{}",
        "captions": [f"a {COLOURS[number % 5]} {THINGS[number % 7]} number {number}",
                     f"the {THINGS[number % 7]} is {COLOURS[number % 5]}, says {number}"],
    } for number in rng.permutation(samples).tolist()]
    return pa.Table.from_pylist(rows, schema=STORE_SCHEMA)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[[int], ImageTextStore]:
    """A store with so many training samples in two files, and three held-out ones."""
    def make(samples: int) -> ImageTextStore:
        store = ImageTextStore(tmp_path / "store")
        table = store_table(samples)
        store.append([table[:samples // 3], table[samples // 3:], store_table(3, "val")], "first")
        return store
    return make


@pytest.fixture(scope="session")
def vectors_and_labels() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """`clustered`."""
    return clustered
