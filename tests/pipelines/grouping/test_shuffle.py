"""Images in the order of the groups: the same files from one process, from Ray, and from Ray whose tasks are killed."""
from __future__ import annotations

import errno
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.grouping import block_tasks, shuffle
from pipelines.grouping.samples import Samples
from pipelines.store import parts
from pipelines.store.schema import iter_batches, write_parquet
from pipelines.store.table import ImageTextStore
from tests.pipelines.grouping.conftest import store_table

ROW_GROUP = 8


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """303 samples in parts of 16 rows, between which held-out rows lie."""
    monkeypatch.setattr(parts, "PART_ROWS", 16)
    store = ImageTextStore(tmp_path / "store")
    store.path.mkdir()
    table = pa.concat_tables([store_table(303, image_bytes=600), store_table(40, "val", image_bytes=600)])
    table = table.take(np.random.default_rng(0).permutation(len(table)))
    files = [store.path / f"{name}.parquet" for name in "abc"]
    for file, rows in zip(files, (table[:90], table[90:100], table[100:]), strict=True):
        write_parquet(rows, file, row_group=16)
    store.append(files, "first")
    return Samples.read(store, store.version(), "train")


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen tasks in each step."""
    monkeypatch.setattr(shuffle, "SPREAD_BYTES", 16_000)
    monkeypatch.setattr(shuffle, "FILE_BYTES", 16_000)


def write(samples: Samples, folder: Path) -> dict[str, bytes]:
    """The files of groups of 5 in a random order, of which the last is filled up with copies."""
    folder.mkdir()
    rows = np.random.default_rng(1).permutation(303)
    groups = np.concatenate([rows, rows[[9, 200]]]).reshape(-1, 5)
    real = np.arange(305).reshape(-1, 5) < 303
    lines = shuffle.write_parts(samples, groups, real, folder, ROW_GROUP)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {line["name"]: line["bytes"] for line in lines} == {name: len(content) for name, content in found.items()}
    assert sum(sum(line["row_groups"]) for line in lines) == 61
    return found


def rows_in(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.iterdir()) for batch in iter_batches(file) for row in batch.to_pylist()]


@pytest.mark.parametrize("chunk", [1, 3000, 2**26])
def test_the_size_of_tasks_changes_the_files_only(chunk: int, samples: Samples, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(write(samples, tmp_path / "whole")) == 1
    calls: list[str] = []
    monkeypatch.setattr(block_tasks.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(shuffle, "CHUNK_BYTES", chunk)
    for name in ("spread", "gather"):
        real = getattr(shuffle, name)
        monkeypatch.setattr(shuffle, name, lambda *args, real=real, name=name, **keys: (
            calls.append(name), real(*args, **keys))[1])
    monkeypatch.setattr(shuffle, "SPREAD_BYTES", 16_000)
    monkeypatch.setattr(shuffle, "FILE_BYTES", 16_000)
    assert len(write(samples, tmp_path / "small")) == calls.count("gather") > 6 and calls.count("spread") > 6
    assert rows_in(tmp_path / "small") == rows_in(tmp_path / "whole")
    images = {row["sample_id"]: row["image"] for batch in samples.store.iter_batches() for row in batch.to_pylist()}
    for row in rows_in(tmp_path / "small"):
        assert row["images"] == [images[sample] for sample in row["sample_ids"]]


def strike(folder: Path, name: str) -> None:
    """Kill this process, the first time that it comes here for `name`."""
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def dying_spread(rows: pa.Table, struck: Path, **keys: Any) -> np.ndarray:
    """One of the tasks dies with half of its file written."""
    number, whole = rows["number"][0].as_py(), shuffle.file_batches

    def until_half(*args: object) -> object:
        for batch in whole(*args):
            yield batch
            if number == 1:
                strike(struck, "spread")

    shuffle.file_batches, shuffle.CHUNK_BYTES = until_half, 1
    try:
        return shuffle.spread(rows, **keys)  # the worker's own
    finally:
        shuffle.file_batches = whole


def dying_gather(rows: pa.Table, struck: Path, **keys: Any) -> np.ndarray:
    """One of the tasks dies with a part of its file written, and one when it is whole."""
    number, whole = rows["number"][0].as_py(), shuffle.write_parquet

    def until_half(table: pa.Table, path: Path, row_group: int) -> int:
        if number == 0 and not (struck / "half").exists():
            path.with_name(f".{path.name}.half.tmp").write_bytes(b"PAR1 and no more")
            strike(struck, "half")
        size = whole(table, path, row_group)
        if number == 5:
            strike(struck, "whole")
        return size

    shuffle.write_parquet = until_half
    try:
        return shuffle.gather(rows, **keys)
    finally:
        shuffle.write_parquet = whole


def written_here(samples: Samples, folder: Path) -> dict[str, bytes]:
    """What this process writes by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_tasks.ray, "is_initialized", lambda: False)
        found = write(samples, folder)
    assert len(found) > 6
    return found


def test_ray_writes_the_same_files(samples: Samples, small_tasks: None, ray_local: ModuleType, tmp_path: Path) -> None:
    assert write(samples, tmp_path / "ray") == written_here(samples, tmp_path / "here")


@pytest.mark.chaos
def test_killed_tasks_change_nothing(samples: Samples, small_tasks: None, ray_local: ModuleType, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    here = written_here(samples, tmp_path / "here")
    (tmp_path / "struck").mkdir()
    monkeypatch.setattr(shuffle, "spread", partial(dying_spread, struck=tmp_path / "struck"))
    monkeypatch.setattr(shuffle, "gather", partial(dying_gather, struck=tmp_path / "struck"))
    killed = write(samples, tmp_path / "killed")
    assert {path.name for path in (tmp_path / "struck").iterdir()} == {"spread", "half", "whole"}
    assert killed == here


def test_behind_a_mistake_no_task_goes_on(ray_local: ModuleType, tmp_path: Path) -> None:
    """So that the folder can be removed."""
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def slow(block: pa.Table) -> np.ndarray:
        number = block["number"][0].as_py()
        if number == 1:
            raise OSError(errno.ENOSPC, "full")
        time.sleep(0.1)
        (tmp_path / str(number)).touch()
        return np.zeros(1, np.int64)

    with pytest.raises(OSError, match="No space left"):
        block_tasks.run(slow, [pa.table({"number": [number]}) for number in range(100)], tmp_path, "writing", None)
    written = set(tmp_path.iterdir())
    assert len(written) < 90
    time.sleep(1)
    assert set(tmp_path.iterdir()) == written


def test_what_goes_wrong_in_a_task_is_told(ray_local: ModuleType, tmp_path: Path) -> None:
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    blocks = [pa.table({"number": [number]}) for number in range(2)]

    def wrong(error: Exception, block: pa.Table) -> np.ndarray:
        raise error

    with pytest.raises(UserError, match="the store changed"):
        block_tasks.run(partial(wrong, UserError("the store changed")), blocks, tmp_path, "writing", None)
    with pytest.raises(UserError, match=f"does not see {tmp_path}: name a groups.path that every node"):
        block_tasks.run(partial(wrong, UserError("")), blocks, tmp_path / "elsewhere", "writing", None)
