"""The store under the Delta log: atomic numbered appends, each batch once, a fixed order."""
from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.transaction import AddAction

from pipelines.store.schema import STORE_SCHEMA, write_parquet
from pipelines.store.table import ImageTextStore

REPOSITORY = Path(__file__).resolve().parents[3]


def rows(ids: list[str], split: str = "train", batch: str = "b") -> pa.Table:
    n = len(ids)
    return pa.table({
        "sample_id": ids, "source": ["test"] * n, "split": [split] * n, "image": [i.encode() for i in ids],
        "width": [1] * n, "height": [1] * n, "sha256": ["0"] * n, "image_class": list(range(n)),
        "captions": [[i, "again"] for i in ids], "metadata": ["{}"] * n, "batch_id": [batch] * n}, STORE_SCHEMA)


def ids_of(store: ImageTextStore, **which: object) -> list[str]:
    return [i for batch in store.iter_batches(["sample_id"], **which) for i in batch["sample_id"].to_pylist()]


@pytest.mark.parametrize("name", ["store", "a store", "fünf"])
def test_appends_make_versions_that_delta_itself_reads(tmp_path: Path, name: str) -> None:
    store = ImageTextStore(tmp_path / name)
    assert not store.exists() and not store.has_batch("one")
    first = store.append([rows(["b", "a"]), rows(["v"], "val")], "one")
    assert store.exists() and store.has_batch("one") and store.version() == first
    second = store.append([rows(["c"])], "two")
    assert second == first + 1

    assert store.count() == 4 and store.count("val") == 1 and store.count(version=first) == 3
    assert sorted(ids_of(store)) == ["a", "b", "c", "v"]
    assert sorted(ids_of(store, split="train", version=first)) == ["a", "b"]
    assert store.files() == sorted(store.files()) and all(Path(file).is_absolute() for file in store.files())
    assert len(store.files(first)) == 2 and set(store.files(first)) < set(store.files())
    if name == "store":
        assert DeltaTable(str(store.path)).to_pyarrow_table().sort_by("sample_id").select(
            STORE_SCHEMA.names).cast(STORE_SCHEMA) == pa.Table.from_batches(store.iter_batches()).sort_by("sample_id")


def test_a_path_that_delta_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not hold '%'"):
        ImageTextStore(tmp_path / "50%20")


def test_rows_come_sorted_in_a_file_whole_and_in_bounded_batches(tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path)
    table = rows([f"{i:03d}" for i in reversed(range(100))])
    store.append([table], "one")
    batches = list(store.iter_batches(rows=7))
    assert max(b.num_rows for b in batches) <= 7
    assert pa.Table.from_batches(batches) == table.sort_by("sample_id")
    assert ids_of(store) == ids_of(store)
    only = next(store.iter_batches(["captions"], split="train"))
    assert only.schema.names == ["captions"]


def test_a_batch_that_is_there_adds_nothing(tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path)
    version = store.append([rows(["a"])], "one")
    assert store.append([rows(["b"])], "one") == version
    assert ids_of(store) == ["a"] and len(list(tmp_path.glob("*.parquet"))) == 1


def test_a_written_file_is_invisible_until_its_commit(tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path)
    store.append([rows(["a"])], "one")
    file = tmp_path / "two.parquet"
    write_parquet(rows(["b"]), file)
    assert ids_of(store) == ["a"]
    store.append([file], "two")
    assert sorted(ids_of(store)) == ["a", "b"]


def test_a_store_that_was_killed_before_its_first_commit_counts_as_missing(tmp_path: Path) -> None:
    from deltalake import Schema
    DeltaTable.create(str(tmp_path), Schema.from_arrow(STORE_SCHEMA))
    store = ImageTextStore(tmp_path)
    assert not store.exists() and not store.has_batch("one")
    store.append([rows(["a"])], "one")
    assert store.exists() and ids_of(store) == ["a"]


def test_foreign_columns_are_refused_by_file_and_column(tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path / "store")
    file = store.path / "foreign.parquet"
    write_parquet(rows(["a"]).drop_columns("captions"), file)
    with pytest.raises(ValueError, match=r"foreign\.parquet: column 'captions' is missing"):
        store.append([file], "one")
    with pytest.raises(ValueError, match="column 'width' has type int64"):
        store.append([rows(["a"]).set_column(4, "width", pc.cast(rows(["a"])["width"], pa.int64()))], "one")
    assert not store.exists()


def test_a_missing_store_names_itself_and_the_mend(tmp_path: Path) -> None:
    for ask in (ImageTextStore.version, ImageTextStore.files, ImageTextStore.count):
        with pytest.raises(FileNotFoundError, match="nowhere: there is no image-text store.*data.store"):
            ask(ImageTextStore(tmp_path / "nowhere"))


def test_a_batch_that_another_process_commits_between_look_and_commit_lands_once(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ImageTextStore(tmp_path).append([rows(["z"])], "zero")
    write = ImageTextStore.write

    def slow_write(self: ImageTextStore, table: pa.Table, batch_id: str) -> Path:
        monkeypatch.setattr(ImageTextStore, "write", write)
        ImageTextStore(tmp_path).append([rows(["first"])], "one")
        return write(self, table, batch_id)
    monkeypatch.setattr(ImageTextStore, "write", slow_write)
    ImageTextStore(tmp_path).append([rows(["second"])], "one")
    assert sorted(ids_of(ImageTextStore(tmp_path))) == ["first", "z"]


APPEND = """
import sys, time
from pathlib import Path
import pyarrow as pa
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore
store, batch_id, name = sys.argv[1:]
row = {"sample_id": name, "split": "train", "batch_id": batch_id, "captions": [name]}
table = pa.Table.from_pylist([row], STORE_SCHEMA)
Path(f"{store}.ready.{name}").touch()
while not Path(f"{store}.go").exists():
    time.sleep(0.001)
ImageTextStore(store).append([table], batch_id)
"""


@pytest.mark.parametrize("same", [False, True])
def test_racing_appends_all_land_and_one_of_the_same_batch(tmp_path: Path, same: bool) -> None:
    names = [f"r{i}" for i in range(4)]
    processes = [subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path / "s"), "one" if same else name, name],
                                  cwd=REPOSITORY) for name in names]
    while not all((tmp_path / f"s.ready.{name}").exists() for name in names):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (tmp_path / "s.go").touch()
    assert [process.wait(60) for process in processes] == [0] * 4
    found = ids_of(ImageTextStore(tmp_path / "s"))
    assert (len(found) == 1) if same else (sorted(found) == names)


def test_versions_stay_however_many_come_later(tmp_path: Path) -> None:
    """Delta's default: when a checkpoint of the log is due, entries older than a month go, and with them versions."""
    store = ImageTextStore(tmp_path)
    first = store.append([rows(["a"])], "batch")
    DeltaTable(str(tmp_path)).alter.set_table_properties({
        "delta.logRetentionDuration": "interval 0 days", "delta.checkpointInterval": "3"})
    for name in "bcdefg":
        store.append([rows([name])], name)
    assert list((tmp_path / "_delta_log").glob("*.checkpoint.parquet"))
    assert ids_of(store, version=first) == ["a"] and list(store.batches()) == ["batch", *"bcdefg"]


def test_a_store_that_another_tool_made_unreadable_is_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "store", rows(["a"]), configuration={"delta.enableDeletionVectors": "true"})
    for read in (ImageTextStore.exists, ImageTextStore.version, lambda store: list(store.iter_batches())):
        with pytest.raises(ValueError, match="store: another tool has changed how this store is read "):
            read(ImageTextStore(tmp_path / "store"))


@pytest.mark.parametrize("name", ["../secret.parquet", "/etc/secret.parquet", "s3://bucket/secret.parquet"])
def test_a_log_that_names_files_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path / "store")
    store.append([rows(["a"])], "one")
    write_parquet(rows(["b"]), tmp_path / "secret.parquet")
    log = DeltaTable(str(store.path))
    log.create_write_transaction([AddAction(name, 1, {}, 0, True, "{}")], "append", log.schema())
    with pytest.raises(ValueError, match=f"its log names .*{name.split('/')[-1]}, which does not lie in its folder"):
        ids_of(store)
