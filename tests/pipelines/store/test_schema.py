"""The one Parquet gate: nothing hostile passes it, nothing is read around it, nor around the one to Arrow files."""
from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.store.bounds import MAX_BATCH_BYTES, MAX_DICTIONARY_BYTES
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
           "read_delta", "to_pyarrow_table", "to_pyarrow_dataset", "read_row_group", "read_row_groups_arrow",
           "scan_parquet", "parquet_dataset", "read_parquet_bulk", "FileSystemDataset", "ipc", "RecordBatchFileReader",
           "RecordBatchStreamReader", "read_feather", "scan_ipc", "read_ipc"}
MODULES = {"dataset", "orc", "feather", "ipc"}
"""Of pyarrow."""
EXCEPTIONS = {
    "pipelines/store/schema.py": "the gate",
    "pipelines/store/ipc.py": "the gate to Arrow files",
    "benchmarks/peers/": "other people's loaders, timed as they come on files that the benchmark has written itself",
}


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


GROWTH = """
import sys
import pyarrow as pa
from pipelines.store.schema import iter_batches, read_row_groups
def peak():
    # Not ru_maxrss, which begins with what the parent process held.
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
list(iter_batches(sys.argv[2]))  # what reading needs anyhow
before, rows, message = peak(), 0, ""
try:
    if sys.argv[3] == "batches":
        for batch in iter_batches(sys.argv[1]):
            rows += batch.num_rows
    else:
        read_row_groups(sys.argv[1], [0], max_bytes=2**25)
except ValueError as error:
    message = str(error)
print(peak() - before, rows, message)
"""


def bomb(file: Path, nested: bool) -> None:
    """512 times one text of 1 MiB that the file holds once: 301 bytes, or 317 with all of them in one row's list."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 512, pa.int32()), pa.array(["x" * 2**20]))
    column = pa.ListArray.from_arrays(pa.array([0, 512], pa.int32()), values) if nested else values
    pq.write_table(pa.table({"captions": column}), file, store_schema=False, compression="zstd", write_statistics=False)
    assert file.stat().st_size < 474


def grown(folder: Path, file: str, how: str = "batches") -> tuple[int, str]:
    """Bytes by which a process grows that reads `file`, and what it says then."""
    write_parquet(pa.table({"captions": ["a"]}), folder / "fine.parquet")
    answer = subprocess.run([sys.executable, "-c", GROWTH, file, "fine.parquet", how], cwd=folder, text=True,
                            env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=True)
    peak, _, said = answer.stdout.strip().partition(" ")
    return int(peak), said


@pytest.mark.parametrize("nested,how,limit,end", [
    (False, "batches", MAX_BATCH_BYTES, "512"),
    (False, "table", 2**25, "0 bomb.parquet: row groups [0] decode to more than 33,554,432 bytes"),
    (True, "batches", MAX_BATCH_BYTES, "0 bomb.parquet: a row of captions decodes to more than 8,388,608 bytes"),
    (True, "table", 2**25, "0 bomb.parquet: a row of captions decodes to more than 8,388,608 bytes")])
def test_a_small_file_that_decodes_to_gigabytes_stays_within_bounded_memory(nested: bool, how: str, limit: int,
                                                                            end: str, tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.parquet", nested)
    peak, said = grown(tmp_path, "bomb.parquet", how)
    assert said.startswith(end)
    assert peak < limit + 64_000_000


def test_a_row_group_of_any_size_is_read_in_bounded_memory(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([os.urandom(50_000) for _ in range(4_000)], pa.binary())})
    pq.write_table(table, tmp_path / "large.parquet", row_group_size=4_000, write_batch_size=16, use_dictionary=False)
    peak, said = grown(tmp_path, "large.parquet")
    assert said == "4000" and peak < 64_000_000 < table.nbytes / 3


def test_large_images_come_in_smaller_batches(tmp_path: Path) -> None:
    write_parquet(pa.table({"image": [bytes([i]) * 2**23 for i in range(12)]}), tmp_path / "a.parquet")
    batches = list(iter_batches(tmp_path / "a.parquet"))
    assert max(batch.num_rows for batch in batches) <= 8 and sum(batch.num_rows for batch in batches) == 12


def test_a_page_of_one_huge_value_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    values = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["x" * (MAX_DICTIONARY_BYTES + 1)]))
    pq.write_table(pa.table({"captions": values}), file, store_schema=False, compression="zstd", write_statistics=False)
    assert file.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"a\.parquet: a dictionary page of 33,554,437 bytes: refused"):
        list(iter_batches(file))


def test_a_list_column_whose_dictionary_is_full_comes_as_it_was_written(tmp_path: Path) -> None:
    table = pa.table({"captions": [[f"caption {i} {k} " + "x" * 100 for k in range(5)] for i in range(5000)]})
    file = tmp_path / "a.parquet"
    pq.write_table(table, file, dictionary_pagesize_limit=100_000)
    assert pa.Table.from_batches(iter_batches(file)) == table


def words() -> st.SearchStrategy[str]:
    return st.sampled_from(["", "a", "a dog", "ü" * 40])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words(), st.lists(words(), max_size=4), st.none() | words()), min_size=1, max_size=40),
       st.integers(1, 9), st.booleans())
def test_repeated_texts_come_as_they_were_written(rows: list[tuple[str, list[str], str | None]], size: int,
                                                  dictionary: bool) -> None:
    table = pa.table({"text": [row[0] for row in rows], "list": [row[1] for row in rows],
                      "deep": [[row[1], []] for row in rows], "none": pa.array([row[2] for row in rows], pa.string()),
                      "struct": [{"a": row[1], "b": 1} for row in rows]})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.parquet"
        pq.write_table(table, file, row_group_size=7, use_dictionary=dictionary, compression="zstd")
        batches = list(iter_batches(file, rows=size))
        assert pa.Table.from_batches(batches) == pq.read_table(file) == table
        assert max(batch.num_rows for batch in batches) <= size
        assert pa.Table.from_batches(iter_batches(file, ["list", "none"])) == table.select(["list", "none"])


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
                     and MODULES & {alias.name for alias in node.names})
                 or (isinstance(node, ast.Import) and {f"pyarrow.{name}" for name in MODULES}
                     & {alias.name for alias in node.names})
                 or (isinstance(node, ast.Constant) and node.value in READERS))
        if named:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("source", [
    "import pyarrow.parquet as pq\npq.read_table('x')", "from pyarrow.parquet import ParquetFile as P\nP('x')",
    "import pandas\npandas.read_parquet('x')", "import ray\nray.data.read_parquet('x')",
    "import pyarrow.parquet\ngetattr(pyarrow.parquet, 'read_table')('x')", "from pyarrow import dataset",
    "from deltalake import DeltaTable\nDeltaTable('x').to_pyarrow_table()",
    "import pyarrow.dataset as ds\nds.dataset('x')", "import pyarrow as pa\npa.ipc.open_file('x')",
    "import pyarrow.ipc", "from pyarrow import ipc", "import polars\npolars.read_ipc('x')",
    "import polars\npolars.scan_parquet('x')"])
def test_the_scan_sees_every_way_around_the_gate(source: str) -> None:
    assert reader_calls(source)


def test_nobody_else_calls_a_parquet_reader() -> None:
    modules = [file for package in ("ashnets", "pipelines", "jobs", "cluster", "benchmarks")
               for file in sorted((REPOSITORY / package).rglob("*.py"))]
    assert len(modules) > 20
    found = {str(file.relative_to(REPOSITORY)): lines for file in modules
             if (lines := reader_calls(file.read_text(encoding="utf-8")))}
    assert "pipelines/store/schema.py" in found
    assert not [name for name in found if not name.startswith(tuple(EXCEPTIONS))]


def test_a_file_without_rows_is_read_as_such(tmp_path: Path) -> None:
    write_parquet(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert list(iter_batches(tmp_path / "empty.parquet")) == []
