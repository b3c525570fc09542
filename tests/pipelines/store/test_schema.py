"""The one Parquet gate: nothing hostile passes it, nothing is read around it."""
from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.store.schema import (
    STORE_SCHEMA,
    check_columns,
    iter_batches,
    open_parquet,
    read_row_groups,
    row_group_sizes,
    write_parquet,
)

REPOSITORY = Path(__file__).resolve().parents[3]
READERS = {"ParquetFile", "ParquetDataset", "read_table", "read_pandas", "read_schema", "read_metadata", "read_parquet",
           "read_delta", "to_pyarrow_table", "to_pyarrow_dataset", "read_row_group"}


class Label(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.int64(), "tests.label")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Label:
        return cls()


class Bomb:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture()
def table() -> pa.Table:
    return pa.table({"name": [f"row {i}" for i in range(10)], "images": [[b"a", bytes([i])] for i in range(10)],
                     "captions": [[["x"], [str(i)]] for i in range(10)]})


def test_what_is_written_is_read_again_by_us_and_by_pyarrow(table: pa.Table, tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.parquet"
    assert write_parquet(table, file, row_group=4) == file.stat().st_size
    assert pq.read_table(file) == table
    assert row_group_sizes(file) == [4, 4, 2]
    batches = list(iter_batches(file, rows=3))
    assert pa.Table.from_batches(batches) == table and max(b.num_rows for b in batches) <= 3
    assert read_row_groups(file, [2, 0], ["images", "name"]) == pa.concat_tables(
        [table[8:], table[:4]]).select(["images", "name"])
    assert read_row_groups(file, []).num_rows == 0
    assert [f.name for f in file.parent.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("step", ["pyarrow.parquet.write_table", "os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(step: str, table: pa.Table, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(table, file)
    before = file.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")
    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_parquet(table[:1], file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("nested", ["plain", "list", "struct"])
def test_extension_types_are_refused_wherever_they_hide(tmp_path: Path, registered: bool, nested: str) -> None:
    column: pa.Array = pa.ExtensionArray.from_storage(Label(), pa.array([1, 2]))
    if nested == "list":
        column = pa.ListArray.from_arrays([0, 1, 2], column)
    if nested == "struct":
        column = pa.StructArray.from_arrays([column], ["inner"])
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"fine": [1, 2], "bad": column}), file)
    if registered:
        pa.register_extension_type(Label())
    try:
        with pytest.raises(ValueError, match=r"a\.parquet: column 'bad.*extension type"):
            open_parquet(file)
        with pytest.raises(ValueError, match="extension type"):
            next(iter_batches(file, ["fine"]))
    finally:
        if registered:
            pa.unregister_extension_type("tests.label")


def test_a_pickle_in_rays_object_column_never_runs(tmp_path: Path) -> None:
    import ray.data  # noqa: F401 - registers the type
    from ray.air.util.object_extensions.arrow import ArrowPythonObjectType

    marker = tmp_path / "ran"
    storage = pa.array([pickle.dumps(Bomb(marker))], pa.large_binary())
    column = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"captions": column}), file)
    for read in (open_parquet, row_group_sizes, lambda f: list(iter_batches(f)), lambda f: read_row_groups(f, [0])):
        with pytest.raises(ValueError, match="extension type"):
            read(file)
    assert not marker.exists()
    pq.read_table(file).to_pylist()
    assert marker.exists(), "the trap itself does not work any more"


def test_a_small_file_that_decodes_to_gigabytes_is_stopped_in_bounded_memory(tmp_path: Path) -> None:
    file = tmp_path / "bomb.parquet"
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), pa.array(["x" * 2**20]))
    pq.write_table(pa.table({"captions": values}), file, store_schema=False, compression="zstd")
    assert file.stat().st_size < 20_000
    program = f"""
import pyarrow as pa
from pipelines.store.schema import read_row_groups
try:
    read_row_groups({str(file)!r}, [0], max_bytes=2**26)
except ValueError as error:
    print(pa.default_memory_pool().max_memory() // 2**20, error)
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    peak, _, message = answer.stdout.partition(" ")
    assert "bomb.parquet: row groups [0] decode to more than 67,108,864 bytes" in message
    assert int(peak) < 400


def damaged(file: Path, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "truncated":
        content = content[:len(content) // 2]
    elif kind == "footer flipped":
        content[-20] ^= 0xFF
        content[-40] ^= 0xFF
        content[-8:-4] = b"\xff\xff\xff\x7f"
    elif kind == "wrong magic":
        content[-4:] = b"NOPE"
    elif kind == "empty":
        content = bytearray()
    elif kind == "page flipped":
        content[60] ^= 0x01
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "footer flipped", "wrong magic", "empty", "page flipped"])
def test_a_damaged_file_is_named(kind: str, table: pa.Table, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(table, file)
    damaged(file, kind)
    with pytest.raises(ValueError, match=r"a\.parquet is .*restore it"):
        list(iter_batches(file))


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_no_file_is_no_file(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such Parquet file"):
        open_parquet(tmp_path if kind == "folder" else tmp_path / "a.parquet")


def test_missing_and_wrong_columns_are_named(table: pa.Table, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(table, file)
    with pytest.raises(ValueError, match=r"a\.parquet: column 'nothing' is missing; it has name, images, captions"):
        next(iter_batches(file, ["nothing"]))
    with pytest.raises(ValueError, match="here: column 'width' is missing"):
        check_columns(STORE_SCHEMA.remove(STORE_SCHEMA.get_field_index("width")), STORE_SCHEMA, "here")
    wrong = STORE_SCHEMA.set(0, pa.field("sample_id", pa.int64()))
    with pytest.raises(ValueError, match="here: column 'sample_id' has type int64, expected string"):
        check_columns(wrong, STORE_SCHEMA, "here")
    check_columns(STORE_SCHEMA.append(pa.field("more", pa.int8())), STORE_SCHEMA, "here")


def reader_calls(source: str) -> list[int]:
    """Lines of a module on which a Parquet reader is named: as an attribute, imported, or looked up."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        named = ((isinstance(node, ast.Attribute) and node.attr in READERS)
                 or (isinstance(node, ast.ImportFrom) and READERS & {alias.name for alias in node.names})
                 or (isinstance(node, ast.ImportFrom) and node.module == "pyarrow"
                     and {"dataset", "orc", "feather"} & {alias.name for alias in node.names})
                 or (isinstance(node, ast.Import) and {"pyarrow.dataset", "pyarrow.orc", "pyarrow.feather"}
                     & {alias.name for alias in node.names})
                 or (isinstance(node, ast.Constant) and node.value in READERS))
        if named:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("source", [
    "import pyarrow.parquet as pq\npq.read_table('x')", "from pyarrow.parquet import ParquetFile as P\nP('x')",
    "import pandas\npandas.read_parquet('x')", "import ray\nray.data.read_parquet('x')",
    "import pyarrow.parquet\ngetattr(pyarrow.parquet, 'read_table')('x')", "from pyarrow import dataset",
    "from deltalake import DeltaTable\nDeltaTable('x').to_pyarrow_table()"])
def test_the_scan_sees_every_way_around_the_gate(source: str) -> None:
    assert reader_calls(source)


def test_nobody_else_calls_a_parquet_reader() -> None:
    modules = [file for package in ("ashnets", "pipelines", "jobs", "cluster", "benchmarks")
               for file in sorted((REPOSITORY / package).rglob("*.py"))]
    assert len(modules) > 20
    found = {str(file.relative_to(REPOSITORY)): lines for file in modules
             if (lines := reader_calls(file.read_text(encoding="utf-8")))}
    assert set(found) == {"pipelines/store/schema.py"}
