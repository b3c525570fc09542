"""The store in object storage, on a real S3 server: the same content and guarantees as in a folder."""
from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.config import DataConfig
from pipelines.files import writing
from pipelines.location import place_of
from pipelines.store.attempts import file_name, remove_old
from pipelines.store.ingest import ingest_demo
from pipelines.store.schema import write_parquet
from pipelines.store.table import ImageTextStore, StoreMoved
from tests.pipelines.store.test_killed import digest, start
from tests.pipelines.store.test_table import APPEND, REPOSITORY, ids_of, rows


def parquet_files(place: str) -> set[str]:
    return {str(file) for file in place_of(place).glob("*.parquet")}


def test_appends_make_versions_and_each_batch_lands_once(bucket: str) -> None:
    store = ImageTextStore(f"{bucket}/store")
    assert not store.exists() and store.newest() == -1 and not store.has_batch("one")
    with pytest.raises(FileNotFoundError, match=f"{bucket}/store: there is no image-text store here"):
        store.version()
    first = store.append([rows(["b", "a"]), rows(["v"], "val")], "one", {"duplicates": "{}"})
    assert store.exists() and store.append([rows(["b"])], "one") == store.version() == first
    file = store.path / "two.parquet"
    write_parquet(rows(["c"]), file)
    assert sorted(ids_of(store)) == ["a", "b", "v"]
    assert store.append([file], "two") == first + 1
    assert sorted(ids_of(store)) == ["a", "b", "c", "v"] and sorted(ids_of(store, split="train", version=first)) == [
        "a", "b"]
    assert set(store.files()) == parquet_files(f"{bucket}/store") and list(store.batches()) == ["one", "two"]


@pytest.mark.parametrize("here", [False, True])
def test_an_append_that_follows_a_version_is_refused_where_another_came(bucket: str, here: bool, tmp_path: Path
                                                                        ) -> None:
    store = ImageTextStore(tmp_path / "store" if here else f"{bucket}/store")
    assert store.append([rows(["a"])], "one", follows=-1) == 1
    for looked_at in (-1, 0):
        with pytest.raises(StoreMoved, match="version 1 has come after"):
            store.append([rows(["b"])], "two", follows=looked_at)
    assert store.append([rows(["b"])], "two", follows=1) == 2 and sorted(ids_of(store)) == ["a", "b"]


@pytest.mark.parametrize("same", [False, True])
def test_racing_appends_all_land_and_one_of_the_same_batch(bucket: str, same: bool, tmp_path: Path) -> None:
    names = [f"r{i}" for i in range(4)]
    code = APPEND.replace('f"{store}.', f'f"{tmp_path}/')
    processes = [subprocess.Popen([sys.executable, "-c", code, f"{bucket}/s", "one" if same else name, name],
                                  cwd=REPOSITORY) for name in names]
    while not all((tmp_path / f"ready.{name}").exists() for name in names):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in processes] == [0] * 4
    found = ids_of(ImageTextStore(f"{bucket}/s"))
    assert (len(found) == 1) if same else (sorted(found) == names)


def test_commits_stay_conditional_whatever_the_environment_says(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_CONDITIONAL_PUT": "disabled", "AWS_S3_ALLOW_UNSAFE_RENAME": "true"}.items():
        monkeypatch.setenv(name, value)
    store = ImageTextStore(f"{bucket}/store")
    store.append([rows(["a"])], "one")
    assert store.append([rows(["b"])], "two") == 2 and sorted(ids_of(store)) == ["a", "b"]


@pytest.mark.full
@pytest.mark.parametrize("scenes", [(40, 40), (40, 60)])
@pytest.mark.parametrize("there", [0, 10])
def test_racing_ingests_both_land_and_no_row_is_doubled(scenes: tuple[int, int], there: int, ray_local: ModuleType,
                                                        bucket: str, tmp_path: Path) -> None:
    """Also where both have written files anew without the rows that were there before them."""
    place = f"{bucket}/store"
    if there:
        there = ingest_demo(DataConfig(source="scenes", scenes=there, scenes_val=8), place).added
    processes = [start(ray_local, place, count, "wait before append", tmp_path / "go") for count in scenes]
    (tmp_path / "go").touch()
    added = [int(process.communicate(timeout=200)[0].split()[0]) for process in processes]
    ids = [sample_id for sample_id, _ in digest(place)]
    assert len(ids) == len(set(ids)) == there + sum(added) == max(scenes) + 8
    assert parquet_files(place) == set(ImageTextStore(place).files())


@pytest.mark.parametrize("moment,committed", [
    ("before _commit", False), ("after _commit", True),
    *(pytest.param(*case, marks=pytest.mark.full) for case in (("before append", False), (0.3, None), (1.0, None)))])
def test_a_killed_ingest_leaves_the_version_before_or_after_and_a_re_run_completes_it(
        moment: str | float, committed: bool | None, ray_local: ModuleType, bucket: str, tmp_path: Path) -> None:
    data = DataConfig(source="scenes", scenes=600, scenes_val=8)  # two files of training scenes
    ingest_demo(data, tmp_path / "whole")
    hook = f"die {moment}" if isinstance(moment, str) else ""
    process = start(ray_local, f"{bucket}/store", 600, hook, tmp_path / "go")
    (tmp_path / "go").touch()
    if isinstance(moment, float):
        time.sleep(moment)
        process.kill()
    assert process.wait(100) == -signal.SIGKILL
    store = ImageTextStore(f"{bucket}/store")
    landed = store.exists()
    assert committed in (landed, None) and (not landed or digest(f"{bucket}/store") == digest(tmp_path / "whole"))
    report = ingest_demo(data, f"{bucket}/store")
    assert report.added == (0 if landed else 608) and digest(f"{bucket}/store") == digest(tmp_path / "whole")


def test_what_killed_ingests_left_goes_after_a_week_and_nothing_else(bucket: str) -> None:
    store = ImageTextStore(f"{bucket}/store")
    store.append([rows(["a"])], "one")
    left = {name: store.path / file_name("batch", 0, 0, name) for name in ("deadbeef", "0badcafe")}
    committed = store.path / file_name("batch", 0, 0, "0badcafe")
    for file in (*left.values(), store.path / "foreign.parquet"):
        write_parquet(rows(["b"]), file)
    store.append([committed], "two")
    before = parquet_files(f"{bucket}/store")
    now = time.time()
    assert remove_old(store, store.path, now - 3600) == [] and parquet_files(f"{bucket}/store") == before
    assert remove_old(store, store.path, now - 3600, "0badcafe") == []
    assert remove_old(store, store.path, now + 3600) == [left["deadbeef"]]
    assert parquet_files(f"{bucket}/store") == before - {str(left["deadbeef"])}


def test_a_file_appears_whole_or_not_at_all(bucket: str) -> None:
    place = place_of(f"{bucket}/file")
    with pytest.raises(ZeroDivisionError), writing(place) as file:
        file.write(b"x" * 20_000_000)
        raise ZeroDivisionError
    assert not place.exists()
    with writing(place) as file:
        file.write(b"x" * 20_000_000)
    assert place.exists() and place.is_file() and place.read_text() == "x" * 20_000_000
    place.unlink()
    place.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        place.unlink()
