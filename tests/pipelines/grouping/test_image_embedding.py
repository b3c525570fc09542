"""Image embeddings of a trained model: the model's own numbers, kept beside the store, made once."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch

from ashnets.pretrained import load
from pipelines.errors import UserError
from pipelines.export import complete
from pipelines.grouping import image_embedding
from pipelines.grouping.kept import embeddings, home_of
from pipelines.grouping.materialise import Progress
from pipelines.grouping.samples import Samples
from pipelines.location import place_of
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore
from tests.pipelines.small_run import make_run, make_store, scene_rows

BROKEN = 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`run`, which has an export, and `store`: 6 training scenes, one of them broken, and 3 held-out ones."""
    rows = scene_rows(9, 3)
    rows[BROKEN]["image"] = rows[BROKEN]["image"][:40]
    store = make_store(tmp_path / "store", rows[:6] + rows[9:])
    make_run(tmp_path / "run", store)
    complete(tmp_path / "run")
    store.append([pa.Table.from_pylist(rows[6:9], schema=STORE_SCHEMA)], "later")
    return tmp_path


def read(root: Path, version: int) -> Samples:
    return Samples.read(ImageTextStore(root / "store"), version, "train")


def embed_images(export: Path, samples: Samples, batch: int, progress: Progress | None = None) -> np.ndarray:
    home = home_of(samples.store.path, export.parent / "groups")
    return embeddings(image_embedding.recipe(export, batch), samples, home, progress)


def test_vectors_are_the_models_and_only_new_rows_are_made(root: Path, ray_local: ModuleType) -> None:
    export, store = root / "run" / "export", ImageTextStore(root / "store")
    first = read(root, store.version() - 1)
    done: list[tuple[str, int, int]] = []
    vectors = embed_images(export, first, 4, lambda *report: done.append(report))
    assert done == [("embedding images", 1, 1)]
    model, processor = load(export)
    images = {row["sample_id"]: row["image"] for batch in store.iter_batches() for row in batch.to_pylist()}
    for sample_id, vector in zip(first.table["sample_id"].to_pylist(), vectors, strict=True):
        if sample_id == f"scenes/train/{BROKEN:06d}":
            assert not vector.any()
            continue
        with torch.inference_mode():
            expected = model.encode_image(**processor(images=images[sample_id]))[0].numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)

    folder = next((root / "store.embeddings").iterdir())
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
    second = read(root, store.version())
    more = embed_images(export, second, 4, lambda *report: done.append(report))
    assert done[1:] == [("embedding images", 1, 1)] and len(more) == 9
    assert {file: file.stat().st_mtime_ns for file in before} == before and len(list(folder.glob("*.parquet"))) == 2
    where = [second.table["sample_id"].to_pylist().index(i) for i in first.table["sample_id"].to_pylist()]
    assert np.array_equal(more[where], vectors)
    listing = json.loads((folder / f"v{store.version()}.json").read_text())
    assert (listing["rows"], listing["without_embedding"], len(listing["files"])) == (9, 1, 2)
    assert np.array_equal(embed_images(export, second, 4, lambda *_: pytest.fail("embedded again")), more)


@pytest.mark.full
def test_where_there_are_gpus_actors_make_the_same(root: Path, ray_local: ModuleType) -> None:
    """A Ray of its own that counts a GPU, which an actor must hold; what it computes on is still the CPU."""
    vectors = embed_images(root / "run" / "export", read(root, ImageTextStore(root / "store").version()), 4)
    (root / "store.embeddings").rename(root / "by_tasks")
    script = """
import ray, sys
ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False)
from tests.pipelines.grouping.test_image_embedding import ImageTextStore, Path, embed_images, read
root = Path(sys.argv[1])
done = []
embed_images(root / "run" / "export", read(root, ImageTextStore(root / "store").version()), 4,
             lambda *report: done.append(report))
print(len(done), "made")
"""
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", script, str(root)], env=variables, capture_output=True, text=True)
    assert done.stdout == "2 made\n" and "ActorPoolMapOperator" in done.stderr, done.stderr
    again = embed_images(root / "run" / "export", read(root, ImageTextStore(root / "store").version()), 4,
                         lambda *_: pytest.fail("embedded again"))
    np.testing.assert_allclose(again, vectors, atol=1e-5)


def test_a_store_at_an_address_has_its_embeddings_beside_it(root: Path, bucket: str, ray_local: ModuleType) -> None:
    export, here = root / "run" / "export", ImageTextStore(root / "store")
    there = make_store(f"{bucket}/store", [row for batch in here.iter_batches() for row in batch.to_pylist()])
    samples = Samples.read(there, there.version(), "train")
    vectors = embed_images(export, samples, 64)
    np.testing.assert_allclose(vectors, embed_images(export, read(root, here.version()), 64), atol=1e-5)
    kept = place_of(f"{bucket}/store.embeddings") / next((root / "store.embeddings").iterdir()).name
    assert len(list(kept.glob("*.parquet"))) == 1 and len(list(kept.glob("v*.json"))) == 1
    assert np.array_equal(embed_images(export, samples, 64, lambda *_: pytest.fail("embedded again")), vectors)


def test_other_weights_have_their_own_embeddings(root: Path, ray_local: ModuleType) -> None:
    samples = read(root, ImageTextStore(root / "store").version())
    vectors = embed_images(root / "run" / "export", samples, 64)
    make_run(root / "other", None)
    complete(root / "other")
    weights = root / "other" / "export" / "model.safetensors"
    from safetensors.torch import load_file, save_file
    changed = {name: value + 0.1 if "image_projection" in name or "itc" in name else value
               for name, value in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    assert not np.allclose(embed_images(root / "other" / "export", samples, 64), vectors)
    assert len(list((root / "store.embeddings").iterdir())) == 2


def test_a_store_that_changed_since_is_told(root: Path, ray_local: ModuleType) -> None:
    samples = read(root, ImageTextStore(root / "store").version())
    embed_images(root / "run" / "export", samples, 64)
    kept = samples.table["sample_id"].to_pylist()
    kept[1] = "scenes/train/another"
    changed = replace(samples, table=samples.table.set_column(0, "sample_id", pa.array(kept)))
    with pytest.raises(ValueError, match="the store changed since it was embedded"):
        embed_images(root / "run" / "export", changed, 64)


def test_weights_that_do_not_fit_are_one_line(root: Path, ray_local: ModuleType) -> None:
    config = root / "run" / "export" / "config.json"
    told = json.loads(config.read_text())
    told["model"]["width"] = 128
    config.write_text(json.dumps(told))
    with pytest.raises(UserError):
        embed_images(root / "run" / "export", read(root, ImageTextStore(root / "store").version()), 64)
    assert image_embedding.weights_hash(root / "run" / "export")
