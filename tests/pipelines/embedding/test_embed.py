"""Embedding a store with Ray Data: the model's own numbers, every sample once, whole or absent."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ashnets.pretrained import load
from pipelines.embedding.embed import MANIFEST, check, embed
from pipelines.embedding.settings import EmbedConfig, EmbedDataConfig
from pipelines.embedding.task import schema
from pipelines.errors import UserError
from pipelines.export import complete
from pipelines.store.schema import STORE_SCHEMA, iter_batches, open_parquet
from pipelines.store.table import ImageTextStore
from tests.pipelines.small_run import make_run, make_store, scene_rows
from tests.small_disk import small_disk

SIZE = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/tiny with its complete export, and data/demo: 9 scenes, one of them broken, one without captions."""
    root = tmp_path_factory.mktemp("root")
    rows = scene_rows(5, 4)
    rows[2]["image"] = rows[2]["image"][:40]
    rows[4]["captions"] = []
    store = make_store(root / "data" / "demo", rows[:4])
    store.append([pa.Table.from_pylist(rows[4:], schema=STORE_SCHEMA)], "second")
    make_run(root / "runs" / "tiny", store)
    complete(root / "runs" / "tiny")
    return root


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for batch in iter_batches(file)
            for row in batch.to_pylist()]


def wanted(root: Path, to: Path, split: str = "") -> EmbedConfig:
    return EmbedConfig(model="tiny", to=str(to), batch=2, data=EmbedDataConfig(split=split))


def test_embeddings_are_those_of_the_model(root: Path, tmp_path: Path, ray_local: ModuleType) -> None:
    seen: list[tuple[str, int, int]] = []
    config = wanted(root, tmp_path / "out")
    export, store = check(config, root)
    manifest = embed(config, export, store, lambda *progress: seen.append(progress))
    rows = {row["sample_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == len(rows_of(tmp_path / "out")) == 8 == manifest["rows"]
    model, processor = load(export)
    captions = 0
    for batch in store.iter_batches(["sample_id", "image", "captions"]):
        for row in batch.to_pylist():
            if row["sample_id"] == "scenes/train/000002":
                continue
            mine = rows[row["sample_id"]]
            with torch.inference_mode():
                image = model.encode_image(**processor(images=row["image"]))[0].numpy()
                np.testing.assert_allclose(mine["image_embedding"], image, atol=1e-5)
                assert len(mine["caption_embeddings"]) == len(row["captions"])
                for vector, caption in zip(mine["caption_embeddings"], row["captions"], strict=True):
                    np.testing.assert_allclose(vector, model.encode_text(**processor(text=caption))[0], atol=1e-5)
            captions += len(row["captions"])
    assert manifest["captions"] == captions and sum(not row["caption_embeddings"] for row in rows.values()) == 1
    for file in manifest["files"]:
        with open_parquet(tmp_path / "out" / file) as opened:
            assert opened.schema_arrow.equals(schema(SIZE))
    assert seen[-1][1] == seen[-1][2] == 2


def test_what_is_left_out_is_told(root: Path, tmp_path: Path, ray_local: ModuleType) -> None:
    config = wanted(root, tmp_path / "out", "train")
    manifest = embed(config, *check(config, root))
    assert {row["sample_id"] for row in rows_of(tmp_path / "out")} == {f"scenes/train/00000{i}" for i in (0, 1, 3, 4)}
    assert manifest["left_out"] == {"undecodable": 1} and manifest["split"] == "train"
    assert json.loads((tmp_path / "out" / MANIFEST).read_text()) == manifest
    assert manifest["model_steps"] == 12 and manifest["embedding"] == SIZE and manifest["version"] >= 1
    assert json.loads((tmp_path / "out" / "left_out.jsonl").read_text()) == {
        "sample_id": "scenes/train/000002", "reason": "undecodable"}


def test_a_damaged_store_leaves_nothing_behind(root: Path, tmp_path: Path, ray_local: ModuleType) -> None:
    shutil.copytree(root / "data" / "demo", tmp_path / "store")
    config = EmbedConfig("tiny", str(tmp_path / "out"), data=EmbedDataConfig(store=str(tmp_path / "store")))
    export, store = check(config, root)
    file = Path(store.files()[0])
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        embed(config, export, store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_full_disk_is_told_and_leaves_nothing_behind(root: Path, tmp_path: Path, ray_local: ModuleType) -> None:
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        config = wanted(root, disk.path / "out")
        disk.fill(left=4096)  # for the folder; not for a task's file
        with pytest.raises(UserError, match=f"the disk of {disk.path} is full: no room for the embeddings"):
            embed(config, *check(config, root))
        assert disk.names() == set()
        disk.free()
        assert embed(config, *check(config, root))["rows"] == 8
        assert disk.names() == {"out"}


def test_mistakes_name_the_thing_and_the_mend(root: Path, tmp_path: Path) -> None:
    def said(config: EmbedConfig) -> str:
        with pytest.raises(UserError) as caught:
            check(config, root)
        return str(caught.value)

    to = tmp_path / "out"
    assert "to is empty" in said(EmbedConfig("tiny"))
    assert "exists already" in said(EmbedConfig("tiny", str(tmp_path)))
    assert "model=nothing" in said(EmbedConfig("nothing", str(to)))
    assert "holds no image-text store" in said(EmbedConfig("tiny", str(to), data=EmbedDataConfig(str(tmp_path))))
    assert "no sample of that split; it has train, val" in said(wanted(root, to, "test"))
    bare = shutil.copytree(root / "runs" / "tiny", tmp_path / "runs" / "bare")
    (Path(bare) / "export" / "config.json").unlink()
    assert "lacks config.json" in said(EmbedConfig(str(bare), str(to)))
    config = json.loads((root / "runs" / "tiny" / "export" / "config.json").read_text())
    config["tasks"]["itc"]["weight"] = 0.0
    (Path(bare) / "export" / "config.json").write_text(json.dumps(config))
    assert "trained without ITC" in said(EmbedConfig(str(bare), str(to)))
    assert not to.exists()


def test_the_store_is_the_demos_by_default(root: Path, tmp_path: Path) -> None:
    export, store = check(wanted(root, tmp_path / "out"), root)
    assert isinstance(store, ImageTextStore) and store.path == root / "data" / "demo"
    assert export == root / "runs" / "tiny" / "export"
