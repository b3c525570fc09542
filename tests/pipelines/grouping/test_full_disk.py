"""Real disks that are full, or become full, while samples are grouped: one clear line, and on with more space."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from ashnets.config import TextConfig
from pipelines.config import GroupsConfig
from pipelines.errors import UserError
from pipelines.grouping import build, cell_tasks, kept, materialise, shuffle
from pipelines.grouping.build import build_groups
from pipelines.grouping.kept import Embedder, Piece, Recipe
from pipelines.grouping.materialise import GroupedStore, building_folder
from pipelines.grouping.samples import Samples
from pipelines.store.parts import Part
from pipelines.store.schema import write_parquet
from pipelines.store.table import ImageTextStore
from tests.pipelines.grouping.conftest import store_table
from tests.small_disk import SmallDisk, small_disk

REPOSITORY = Path(__file__).resolve().parents[3]
MIB = 2**20
TEXT = TextConfig(init="none", tokenizer="not read")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "size=16m") as mounted:
        yield mounted


@pytest.fixture
def store(tmp_path: Path) -> ImageTextStore:
    """200 samples of 12 kB: about 2.4 MB, and twice that while they are grouped."""
    made = ImageTextStore(tmp_path / "store")
    table = store_table(200, image_bytes=12_000)
    made.append([table[:70], table[70:], store_table(3, "val", image_bytes=12_000)], "first")
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def group(store: ImageTextStore, path: Path, size: int) -> GroupedStore:
    return build_groups(GroupsConfig(method="random", size=size), TEXT, store, 0, path)


@pytest.mark.full
def test_the_command_says_it_and_goes_on_with_more_space(store: ImageTextStore, disk: SmallDisk, tmp_path: Path,
                                                         ray_local: ModuleType) -> None:
    environment = os.environ | {"RAY_ADDRESS": ray_local.get_runtime_context().gcs_address}

    def command(name: str, size: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPOSITORY / "jobs" / "group.py"), f"data.store={store.path}", "groups.method=random",
             f"groups.size={size}", f"groups.path={disk.path / name}"], env=environment, capture_output=True, text=True)

    assert command("first", 2).returncode == 0
    first = content(disk.path / "first")
    disk.fill(left=MIB)
    done = command("second", 4)
    told = f"error: the disk of {disk.path / 'second'} is full: building the groups (groups.path) takes about 5 MiB"
    assert done.returncode == 2 and done.stderr.startswith(told) and done.stderr.count("\n") == 1
    assert ", 1 MiB are free; " in done.stderr and "free some space and run the same command again" in done.stderr
    assert disk.names() == {"first"} and content(disk.path / "first") == first

    disk.free()
    counts = os.statvfs(disk.path)  # there are bytes enough, but three files are all that can be made
    disk.change(f"nr_inodes={counts.f_files - counts.f_ffree + 3}")
    done = command("second", 4)
    assert done.returncode == 2 and done.stderr.startswith(told) and done.stderr.count("\n") == 1
    assert "MiB (for 3 files) are free" in done.stderr
    assert disk.names() == {"first"} and content(disk.path / "first") == first

    disk.change("nr_inodes=1000")
    done = command("second", 4)
    assert done.returncode == 0, done.stderr
    assert content(group(store, tmp_path / "reference", 4).path) == content(disk.path / "second")
    assert content(disk.path / "first") == first and GroupedStore.open(disk.path / "first", 2).groups == 100


def test_too_little_space_is_seen_before_the_work(store: ImageTextStore, disk: SmallDisk,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "group", lambda *_: pytest.fail("the work has begun"))
    disk.fill(left=4 * MIB)
    with pytest.raises(UserError, match=r"takes about 5 MiB, 4 MiB are free; .* run the same command again"):
        group(store, disk.path / "groups", 4)
    assert not disk.names()


@pytest.mark.parametrize("moment", ["spread", "gather", "write_atomically", "finish"])
def test_a_disk_that_becomes_full_on_the_way(moment: str, store: ImageTextStore, disk: SmallDisk, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else takes the space where the images, a part file, the manifest or the report are to be written."""
    first = content(group(store, disk.path / "first", 2).path)
    samples = Samples.read(store, store.version(), "train")
    groups = np.random.default_rng(0).permutation(200).reshape(50, 4)

    def write(path: Path, finish: Callable[[GroupedStore], None] = lambda _: None) -> GroupedStore:
        return materialise.materialise(samples, groups, groups >= 0, path, 3, {"size": 4}, {}, finish)

    def fill_and(go_on: Callable) -> Callable:
        def both(*args: object, **kwargs: object) -> object:
            disk.fill()
            return go_on(*args, **kwargs)
        return both

    def report(built: GroupedStore) -> None:
        (built.path / "groups.html").write_text("x" * 5000)

    with monkeypatch.context() as patch:
        if moment == "finish":
            report = fill_and(report)
        else:
            module = materialise if moment == "write_atomically" else shuffle
            patch.setattr(module, moment, fill_and(getattr(module, moment)))
        with pytest.raises(UserError, match=f"^the disk of {disk.path / 'second'} is full: building the groups"):
            write(disk.path / "second", report)
    assert disk.names() == {"first"} and content(disk.path / "first") == first
    disk.free()
    assert content(write(disk.path / "second").path) == content(write(tmp_path / "reference").path)


def test_the_vectors_of_the_cells(disk: SmallDisk) -> None:
    """NumPy says it in words of its own."""
    disk.fill(left=MIB)
    vectors = np.ones((MIB, 4), np.float32)
    with pytest.raises(UserError, match=f"^the disk of {disk.path / 'groups'} is full: .* takes about 16 MiB, 1"), \
            building_folder(disk.path / "groups", vectors.nbytes, ".cells") as work:
        cell_tasks.save_vectors(vectors, work)
    assert not disk.names()


def test_the_embeddings_beside_the_store(disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = disk.path / "store.embeddings" / "model" / "piece.parquet"
    piece = Piece(Part(0, "file", (0,), 1000), 1000, to)
    recipe = Recipe("images", "0" * 64, 512, "image_embedding", ("image",), 64, lambda _: pytest.fail("loaded"), {})
    disk.fill(left=MIB)
    with pytest.raises(UserError, match=f"^the disk of {to.parent} is full: embedding the images takes"):
        kept.missing([piece], recipe)
    disk.free()
    assert kept.missing([piece], recipe) == [piece]

    vectors = pa.table({"sample_id": [str(n) for n in range(10_000)]})
    monkeypatch.setattr(Embedder, "_write", lambda *_: (disk.fill(), write_parquet(vectors, to)))
    told = Embedder([piece], recipe, "train").embed(0)
    assert told.startswith(f"the disk of {to.parent} is full: no room for embedding the images, 0 MiB are free")
    assert not list(to.parent.iterdir())
