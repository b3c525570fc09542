"""The gate to Arrow files: what is written comes back; nothing hostile in one runs, swells or passes for whole."""
from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pytest

from pipelines.store.ipc import ipc_schema, iter_ipc_batches

REPOSITORY = Path(__file__).resolve().parents[3]
COLUMNS = ["image", "texts", "number"]
FORMS = ["lz4", "zstd", "uncompressed", "stream"]


def table() -> pa.Table:
    return pa.table({"number": range(100), "texts": [["a", "ü"], [], ["c"], None] * 25,
                     "image": [b"x" * 100, b"y", b"", None] * 25, "unread": [{"a": 1.5}] * 100})


def write(content: pa.Table, file: Path, form: str) -> Path:
    if form == "stream":
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, content.schema) as writer:
            writer.write_table(content, max_chunksize=30)
    else:
        pyarrow.feather.write_feather(content, str(file), compression=form, chunksize=30)
    return file


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_comes_back_in_bounded_batches(form: str, tmp_path: Path) -> None:
    file = write(table(), tmp_path / "a.arrow", form)
    assert ipc_schema(file) == table().schema
    batches = list(iter_ipc_batches(file, COLUMNS, rows=9))
    assert pa.Table.from_batches(batches) == table().select(COLUMNS) and max(b.num_rows for b in batches) == 9


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_anywhere_or_lacks_rows_is_named(form: str, tmp_path: Path) -> None:
    whole = write(table(), tmp_path / "a.arrow", form).read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "cut.arrow").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.arrow is not a readable Arrow file .*: restore it"):
            list(iter_ipc_batches(tmp_path / "cut.arrow", COLUMNS))
    middle = bytearray(whole)
    second = [at for at in range(len(whole)) if whole.startswith(b"\xff\xff\xff\xff", at)][2]
    middle[second + 4:second + 8] = bytes(4)  # an end of the stream where a batch begins
    (tmp_path / "cut.arrow").write_bytes(middle)
    with pytest.raises(ValueError, match=r"cut\.arrow is not a readable Arrow file .rows are missing before its end"):
        list(iter_ipc_batches(tmp_path / "cut.arrow", COLUMNS))


@pytest.mark.parametrize("form", FORMS)
def test_spoilt_bytes_are_read_or_refused_and_nothing_else(form: str, tmp_path: Path) -> None:
    whole, generator = write(table(), tmp_path / "a.arrow", form).read_bytes(), random.Random(0)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(len(content))] = generator.choice((0, 255, generator.randrange(256)))
        (tmp_path / "b.arrow").write_bytes(content)
        try:
            for batch in iter_ipc_batches(tmp_path / "b.arrow", COLUMNS):
                batch.to_pylist()
        except ValueError as error:
            assert str(tmp_path / "b.arrow") in str(error) and "\n" not in str(error)


def test_what_is_no_arrow_file_is_named(tmp_path: Path) -> None:
    for content, said in ((b"", "cannot mmap|empty|its end"), (b"FEA1" + bytes(99), "Feather of version 1"),
                          (b"<html>404</html>", "it is no Arrow file")):
        (tmp_path / "a.arrow").write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.arrow is not a readable Arrow file .*({said})"):
            ipc_schema(tmp_path / "a.arrow")
    with pytest.raises(FileNotFoundError, match="no such Arrow file"):
        ipc_schema(tmp_path / "nothing.arrow")
    write(table(), tmp_path / "a.arrow", "lz4")
    with pytest.raises(ValueError, match=r"a\.arrow: column 'words' is missing; it has number, texts"):
        next(iter_ipc_batches(tmp_path / "a.arrow", ["words"]))


class Trap(pa.ExtensionType):
    """A type that runs code when a schema with it is read."""

    sprung: list[bytes] = []

    def __init__(self) -> None:
        super().__init__(pa.int64(), "tests.trap")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"from the file"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Trap:
        cls.sprung.append(serialized)
        return cls()


@pytest.mark.parametrize("nested", ["plain", "list", "struct"])
@pytest.mark.parametrize("form", ["lz4", "stream"])
def test_an_extension_type_is_refused_before_it_is_made(nested: str, form: str, tmp_path: Path) -> None:
    column: pa.Array = pa.ExtensionArray.from_storage(Trap(), pa.array([1, 2]))
    if nested == "list":
        column = pa.ListArray.from_arrays([0, 1, 2], column)
    if nested == "struct":
        column = pa.StructArray.from_arrays([column], ["inner"])
    file = write(pa.table({"fine": [1, 2], "bad": column}), tmp_path / "a.arrow", form)
    pa.register_extension_type(Trap())
    try:
        Trap.sprung.clear()
        for read in (ipc_schema, lambda path: list(iter_ipc_batches(path, ["fine"]))):
            with pytest.raises(ValueError, match=r"a\.arrow: a column has an extension type, which may hide code"):
                read(file)
        assert Trap.sprung == []
        with pa.OSFile(str(file)) as opened:
            (pa.ipc.open_stream if form == "stream" else pa.ipc.open_file)(opened)
        assert Trap.sprung, "the trap itself does not work any more"
    finally:
        pa.unregister_extension_type("tests.trap")


@pytest.mark.parametrize("column", [
    pa.array(["a"]).dictionary_encode(), pa.ListArray.from_arrays([0, 1], pa.array(["a"]).dictionary_encode()),
    pa.array(["a"], pa.string_view()), pa.array([b"a"], pa.binary_view()), pa.array([["a"]], pa.list_view(pa.string())),
    pa.RunEndEncodedArray.from_arrays([1], ["a"])], ids=lambda column: str(column.type))
def test_types_that_repeat_a_value_are_refused(column: pa.Array, tmp_path: Path) -> None:
    file = write(pa.table({"number": [1], "texts": column}), tmp_path / "a.arrow", "stream")
    with pytest.raises(ValueError, match=r"a\.arrow: column 'texts' has type .*, which may repeat a value"):
        ipc_schema(file)


GROWTH = """
import sys
from pipelines.store import ipc
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
list(ipc.iter_ipc_batches("fine.arrow", ["image"]))
before, rows, message = peak(), 0, ""
ipc.MAX_BATCH_BYTES = int(sys.argv[1])
try:
    for batch in ipc.iter_ipc_batches("bomb.arrow", ["image"]):
        rows += batch.num_rows
except ValueError as error:
    message = str(error)
print(peak() - before, rows, message)
"""


def test_a_small_file_that_decodes_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    bomb = pa.table({"image": [bytes(2**22)] * 64})
    pyarrow.feather.write_feather(bomb, str(tmp_path / "bomb.arrow"), compression="zstd")
    assert (tmp_path / "bomb.arrow").stat().st_size < 2**16
    write(table(), tmp_path / "fine.arrow", "zstd")

    def grown(limit: int) -> tuple[int, str]:
        answer = subprocess.run([sys.executable, "-c", GROWTH, str(limit)], cwd=tmp_path, text=True, check=True,
                                env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True)
        peak, _, said = answer.stdout.strip().partition(" ")
        return int(peak), said

    peak, said = grown(2**25)
    assert said.startswith("0 bomb.arrow: a batch decodes to 268,435,716 bytes, more than 33,554,432: write it with")
    assert peak < 2**25
    assert grown(2**30)[0] > 2**28, "the measure does not see a bomb that is let through"
