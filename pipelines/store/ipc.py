"""The gate to Arrow IPC files (.arrow, .feather), beside schema.py's to Parquet: nothing in one runs, nothing swells.

pyarrow makes extension types of a schema as it reads it, and what some library has registered may then unpickle the
file's own bytes; it also decompresses a batch whole, whatever size that says it has. So the messages are taken one by
one: a schema is searched for extensions before it is read, a batch's sizes are added up before it is decoded, and its
values are validated before one is used.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from pipelines.location import Place, is_local, locate, reaching

ENDINGS = (".arrow", ".feather")
MAX_BATCH_BYTES = 2**30
"""Decoded bytes of the largest batch that is read; most writers take 1,000 to 65,536 rows a batch."""
_EXTENSION, _OLD_COMPRESSION = b"ARROW:extension", b"ARROW:experimental_compression"
_REPEATING = (pa.types.is_dictionary, pa.types.is_run_end_encoded, pa.types.is_string_view, pa.types.is_binary_view,
              pa.types.is_list_view, pa.types.is_large_list_view)
_MAGIC, _END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"


def is_ipc(name: str) -> bool:
    """Whether a file is one of these, by its name."""
    return name.lower().endswith(ENDINGS)


def ipc_schema(path: str | Place) -> pa.Schema:
    """The file's columns; errors as for `iter_ipc_batches`."""
    with _opened(path) as (schema, _):
        return schema


def iter_ipc_batches(path: str | Place, columns: Sequence[str], rows: int = 64) -> Iterator[pa.RecordBatch]:
    """The file's rows in order, in batches of at most `rows`.

    Raises ValueError naming the file where it is damaged or cut, where a column is missing, and where it holds an
    extension type, one that may repeat values, or a batch of more than MAX_BATCH_BYTES.
    """
    with _opened(path) as (schema, batches):
        for name in columns:
            if name not in schema.names:
                raise ValueError(f"{path}: column {name!r} is missing; it has {', '.join(schema.names)}")
        for batch in batches:
            wanted = batch.select(list(columns))
            wanted.validate(full=True)
            for start in range(0, wanted.num_rows, rows):
                yield wanted.slice(start, rows)


@contextmanager
def _opened(path: str | Place) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema of a file, and its batches as they lie in it."""
    system, inner = locate(path)
    with reaching(path):
        if not system.get_file_info(inner).is_file:
            raise FileNotFoundError(f"{path}: no such Arrow file")
    try:
        # A mapped file costs no memory for the rows that nobody looks at.
        with reaching(path), (pa.memory_map(inner) if is_local(str(path)) else system.open_input_file(inner)) as file:
            end = _find_end(file)
            messages = pa.ipc.MessageReader.open_stream(file)
            schema = _schema(path, next(messages))
            yield schema, _batches(path, file, end, messages, schema)
    except (pa.ArrowException, OSError, struct.error, StopIteration, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        told = (str(error) or "it ends before its first row").splitlines()[0]
        raise ValueError(f"{path} is not a readable Arrow file ({told}): restore it, or remove it and make it again"
                         ) from error


def _find_end(file: pa.NativeFile) -> int:
    """Go to the first message; returns where the last one must end. A file that is cut has another end than that."""
    size = file.size()
    start, tail = file.read_at(8, 0), file.read_at(min(10, size), max(0, size - 10))
    if start.startswith(_MAGIC):  # the file format is a stream between its magic and a footer
        if not tail.endswith(_MAGIC):
            raise pa.ArrowInvalid("its end is missing")
        file.seek(8)
        return int(size - 10 - struct.unpack_from("<i", tail)[0])
    if not tail.endswith(_END):
        raise pa.ArrowInvalid("Feather of version 1" if start.startswith(b"FEA1") else
                              "it is no Arrow file, or its end is missing")
    file.seek(0)
    return int(size)


def _schema(path: str | Place, message: pa.ipc.Message) -> pa.Schema:
    if _EXTENSION in message.metadata.to_pybytes():
        raise ValueError(f"{path}: a column has an extension type, which may hide code: write it as a plain column")
    schema = pa.ipc.read_schema(message)
    for field in schema:
        if _may_repeat(field.type):
            raise ValueError(f"{path}: column {field.name!r} has type {field.type}, which may repeat a value without "
                             "end: write it as a plain column, or as Parquet")
    return schema


def _may_repeat(kind: pa.DataType) -> bool:
    """Whether values of the type, or of one inside it, may be stored once and stand in many rows."""
    return any(is_kind(kind) for is_kind in _REPEATING) or any(
        _may_repeat(kind.field(i).type) for i in range(kind.num_fields))


def _batches(path: str | Place, file: pa.NativeFile, end: int, messages: Iterator[pa.ipc.Message], schema: pa.Schema
             ) -> Iterator[pa.RecordBatch]:
    for message in messages:
        size = _decoded_bytes(message)
        if size > MAX_BATCH_BYTES:
            raise ValueError(f"{path}: a batch decodes to {size:,} bytes, more than {MAX_BATCH_BYTES:,}: write it "
                             "with fewer rows a batch, or as Parquet")
        yield pa.ipc.read_record_batch(message, schema)
    if file.tell() != end:
        raise pa.ArrowInvalid("rows are missing before its end")


def _decoded_bytes(message: pa.ipc.Message) -> int:
    """Bytes of a batch's buffers; a compressed one begins with its size, an int64, or -1 where it is stored plain.

    The message is a FlatBuffer (format/Message.fbs): Message.header is the third field, RecordBatch.buffers the third,
    `compression` the fourth.
    """
    if message.type != "record batch":
        raise pa.ArrowInvalid(f"a {message.type} where rows should be")
    metadata, body = message.metadata.to_pybytes(), message.body
    if _OLD_COMPRESSION in metadata:
        raise pa.ArrowInvalid("compressed as in Arrow 0.17")

    def number(form: str, at: int) -> int:
        return int(struct.unpack_from(f"<{form}", metadata, at)[0])

    def field(table: int, index: int) -> int:
        """Where a table's field stands; 0 where it has none."""
        vtable = table - number("i", table)
        offset = number("H", vtable + 4 + 2 * index) if 4 + 2 * index < number("H", vtable) else 0
        return table + offset if offset else 0

    def target(at: int) -> int:
        return at + number("I", at)

    record = target(field(target(0), 2))
    vector = target(field(record, 2))
    total = 0
    for offset, length in struct.iter_unpack("<qq", metadata[vector + 4:vector + 4 + 16 * number("I", vector)]):
        size = struct.unpack_from("<q", body, offset)[0] if field(record, 3) and length else -1
        total += length if size == -1 else max(0, size)
    return total
