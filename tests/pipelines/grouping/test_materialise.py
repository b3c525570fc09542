"""The grouped store on disk: what is written comes back, whole or not at all, and damage is named."""
from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from pipelines.grouping import materialise as materialise_module
from pipelines.grouping import shuffle
from pipelines.grouping.materialise import GROUP_SCHEMA, GroupedStore, existing, materialise
from pipelines.grouping.samples import Samples
from pipelines.store.schema import check_columns, iter_batches, read_row_groups, row_group_sizes, write_parquet
from pipelines.store.table import ImageTextStore

CONFIGURATION = {"size": 4, "seed": 0}


def write(store: ImageTextStore, path: Path, size: int = 4, row_group: int = 3) -> GroupedStore:
    samples = Samples.read(store, store.version(), "train")
    count = -(-len(samples) // size)
    groups = np.random.default_rng(0).permutation(count * size).reshape(count, size)
    real = groups < len(samples)
    groups = np.where(real, groups, (groups[:, :1] + 1) % len(samples))
    return materialise(samples, groups, real, path, row_group, CONFIGURATION, {"seed": 0})


def rows_of(store: GroupedStore) -> list[dict]:
    return [row for file, index, _ in store.row_groups for row in read_row_groups(file, [index]).to_pylist()]


def test_every_sample_comes_back_with_its_image_and_words(make_store: Callable, tmp_path: Path) -> None:
    store = make_store(50)
    records = {record["sample_id"]: record for batch in store.iter_batches(split="train")
               for record in batch.to_pylist()}
    rows = rows_of(write(store, tmp_path / "groups"))
    assert [row["group_id"] for row in rows] == list(range(13))
    seen = []
    for row in rows:
        for sample, image, captions, image_class, real in zip(
                row["sample_ids"], row["images"], row["captions"], row["image_classes"], row["real"], strict=True):
            record = records[sample]
            assert (image, captions, image_class) == (record["image"], record["captions"], record["image_class"])
            seen += [sample] * real
    assert sorted(seen) == sorted(records)
    assert sum(not real for row in rows for real in row["real"]) == 2


def test_row_groups_files_and_manifest_agree(make_store: Callable, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shuffle, "FILE_BYTES", 2000)
    store = write(make_store(100), tmp_path / "groups", row_group=3)
    files = store.manifest["files"]
    assert len(files) > 2 and store.groups == 25 and store.size == 4
    for file in files:
        assert row_group_sizes(store.path / file["name"]) == file["row_groups"]
        assert (store.path / file["name"]).stat().st_size == file["bytes"] < 2 * 2000 + 4000
    assert [rows for _, _, rows in store.row_groups] == [3] * 8 + [1]
    assert [row["group_id"] for row in rows_of(store)] == list(range(25))
    check_columns(next(iter_batches(store.row_groups[0][0])).schema, GROUP_SCHEMA, "part")
    assert sorted(p.name for p in store.path.iterdir()) == sorted([f["name"] for f in files] + ["groups.json"])


@pytest.mark.parametrize(("module", "where"), [(shuffle, "write_parquet"), (materialise_module, "write_atomically")])
def test_a_failure_in_the_middle_leaves_nothing(module: ModuleType, where: str, make_store: Callable, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("input/output error")

    store = make_store(20)
    monkeypatch.setattr(module, where, fail)
    with pytest.raises(OSError, match="input/output error"):
        write(store, tmp_path / "groups")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    monkeypatch.undo()
    assert write(store, tmp_path / "groups").groups == 5


def test_what_a_killed_build_left_is_removed_and_a_live_one_kept(make_store: Callable, tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    dead, alive, elsewhere = (tmp_path / f".groups.{host}.{pid}.building" for host, pid in (
        (socket.gethostname(), process.pid), (socket.gethostname(), os.getppid()), ("another-host", process.pid)))
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    write(make_store(20), tmp_path / "groups")
    assert not dead.exists() and alive.exists() and elsewhere.exists()


def test_a_folder_that_came_into_being_is_kept(make_store: Callable, tmp_path: Path) -> None:
    store = make_store(20)
    (tmp_path / "groups").mkdir()
    with pytest.raises(ValueError, match="came into being"):
        write(store, tmp_path / "groups")
    assert list((tmp_path / "groups").iterdir()) == []


def test_a_store_that_changed_is_noticed(make_store: Callable, tmp_path: Path) -> None:
    """A file whose rows stand in another order, and one that has lost its last row."""
    store = make_store(20)
    samples = Samples.read(store, 1, "train")
    groups = np.arange(20).reshape(5, 4)
    file = max(store.files(1), key=os.path.getsize)
    table = pa.Table.from_batches(iter_batches(file))
    for changed in (table.take(np.arange(len(table))[::-1]), table[:-1]):
        write_parquet(changed, file)
        with pytest.raises(ValueError, match="version 1 changed while it was grouped: start again"):
            materialise(samples, groups, groups >= 0, tmp_path / "groups", 3, CONFIGURATION, {})
    assert not (tmp_path / "groups").exists()


def test_a_sample_id_that_occurs_twice_is_refused(make_store: Callable) -> None:
    store = make_store(9)
    table = pa.Table.from_batches(store.iter_batches(split="train"))
    store.append([table[:1]], "second")
    with pytest.raises(ValueError, match=f"sample id {table['sample_id'][0].as_py()!r} occurs more than once"):
        Samples.read(store, store.version(), "train")


def test_an_empty_split_is_refused(make_store: Callable) -> None:
    store = make_store(9)
    with pytest.raises(ValueError, match="holds no sample of split 'nothing'"):
        Samples.read(store, store.version(), "nothing")


def test_open_names_what_is_wrong(make_store: Callable, tmp_path: Path) -> None:
    path = tmp_path / "groups"
    with pytest.raises(FileNotFoundError, match="there is no grouped store here"):
        GroupedStore.open(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no groups.json"):
        GroupedStore.open(tmp_path / "empty")
    write(make_store(20), path)
    with pytest.raises(ValueError, match="groups have 4 samples, groups.size=8"):
        GroupedStore.open(path, size=8)
    part = path / "part-00000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"part-00000.parquet has {len(content) - 1} bytes"):
        GroupedStore.open(path)
    part.unlink()
    with pytest.raises(FileNotFoundError, match="part-00000.parquet is missing"):
        GroupedStore.open(path)


@pytest.mark.parametrize(("content", "message"), [("{", "damaged"), ("[]", "damaged"), ("{}", "damaged"),
                                                  ('{"format": 99}', "format 99, this version reads 1")])
def test_a_damaged_manifest_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        GroupedStore.open(tmp_path)


def test_existing_groups_are_taken_or_refused_by_configuration(make_store: Callable, tmp_path: Path) -> None:
    path = tmp_path / "groups"
    assert existing(path, CONFIGURATION) is None
    write(make_store(20), path)
    found = existing(path, CONFIGURATION)
    assert found is not None and found.manifest == json.loads((path / "groups.json").read_text())
    with pytest.raises(ValueError, match=r"another configuration: size=4 \(now 8\)"):
        existing(path, {**CONFIGURATION, "size": 8})
