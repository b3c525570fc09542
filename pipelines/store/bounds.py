"""How much a Parquet file can decode to: repeated texts are stored once, so a few hundred bytes may mean gigabytes.

A column chunk that begins with a dictionary page repeats that page's values as often as it likes. The page's own header
says how large it is (pyarrow checks that when it decompresses); the footer may lie, so it is not asked. `file` is the
opened pq.ParquetFile here, `raw` the same file's bytes.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

MAX_BATCH_BYTES = 8 * 2**20
"""Decoded bytes of the repeated texts of one batch; more only where a single text is larger."""
MAX_DICTIONARY_BYTES = 32 * 2**20
"""Largest dictionary page; writers turn to plain pages at about 1 MiB."""
PLAIN_BATCH_BYTES = 64 * 2**20
"""What a batch should hold at most by the file's own figures, so that large images come in smaller batches."""
DICTIONARY_PAGE = 2


class Unbounded(Exception):
    """What a file decodes to cannot be kept small."""


def bounded_rows(file: Any, raw: BinaryIO, columns: Sequence[str], row_groups: Sequence[int],
                 rows: int) -> int:
    """The largest batch, at most `rows` and about PLAIN_BATCH_BYTES, whose repeated texts outside lists stay below
    MAX_BATCH_BYTES whatever they repeat.

    Raises Unbounded where a single text could be larger than MAX_DICTIONARY_BYTES.
    """
    largest, average = 1, 1
    for group in row_groups:
        row_group = file.metadata.row_group(group)
        chunks = [row_group.column(i) for i in range(row_group.num_columns)]
        average = max(average, sum(chunk.total_uncompressed_size for chunk in chunks
                                   if chunk.path_in_schema.split(".")[0] in columns) // max(1, row_group.num_rows))
        sizes = [_dictionary_bytes(raw, chunk) for chunk in _text_chunks(file, columns, group, nested=False)]
        largest = max(largest, sum(sizes))
    if largest > MAX_DICTIONARY_BYTES:
        raise Unbounded(f"a dictionary page of {largest:,} bytes")
    return min(rows, max(1, MAX_BATCH_BYTES // largest), max(1, PLAIN_BATCH_BYTES // average))


def repeated_lists(file: Any, raw: BinaryIO, columns: Sequence[str], row_groups: Sequence[int]) -> list[str]:
    """The leaves below lists that repeat texts: one row can hold any number of them, so they are read as indices."""
    return sorted({chunk.path_in_schema for group in row_groups
                   for chunk in _text_chunks(file, columns, group, nested=True) if _dictionary_bytes(raw, chunk)})


def expand(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batch with its indices replaced by texts, in pieces below MAX_BATCH_BYTES; Unbounded for a larger row."""
    if sum(_text_bytes(column) for column in batch.columns) > MAX_BATCH_BYTES:
        if batch.num_rows == 1:
            raise Unbounded(f"a row of {', '.join(batch.schema.names)} decodes to more than {MAX_BATCH_BYTES:,} bytes")
        half = batch.num_rows // 2
        yield from expand(batch.slice(0, half), schema)
        yield from expand(batch.slice(half), schema)
    else:
        yield batch.cast(pa.schema([schema.field(name) for name in batch.schema.names]))


def _text_chunks(file: Any, columns: Sequence[str], group: int, *, nested: bool
                 ) -> Iterator[Any]:
    row_group = file.metadata.row_group(group)
    for i in range(row_group.num_columns if row_group.num_rows else 0):  # without rows there are no pages
        leaf, chunk = file.schema.column(i), row_group.column(i)
        wanted = chunk.path_in_schema.split(".")[0] in columns
        if wanted and leaf.physical_type == "BYTE_ARRAY" and nested == (leaf.max_repetition_level > 0):
            yield chunk


def _dictionary_bytes(raw: BinaryIO, chunk: Any) -> int:
    """Uncompressed bytes of the dictionary page with which the chunk begins; 0 where it begins with another page.

    A page header is a Thrift struct, compact protocol: a byte 0x15 before each of its first fields (the page's type,
    its uncompressed size), which are zigzag varints (parquet.thrift, `PageHeader`).
    """
    offsets = (chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
    raw.seek(max(0, min(offsets)))
    header = raw.read(16)
    fields: list[int] = []
    at = 0
    while len(fields) < 2 and at < len(header):
        if header[at] != 0x15:
            raise pa.ArrowInvalid(f"column {chunk.path_in_schema} has a page header of unknown form")
        value, shift, at = 0, 0, at + 1
        while at < len(header):
            value |= (header[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not header[at - 1] & 0x80:
                break
        fields.append(value >> 1 if not value & 1 else -1)
    kind, size = [*fields, 0, 0][:2]
    if size < 0:
        raise pa.ArrowInvalid(f"column {chunk.path_in_schema} has a page of negative size")
    return size if kind == DICTIONARY_PAGE else 0


def _text_bytes(array: pa.Array) -> int:
    """Bytes that the indices of an array, or of its elements, stand for."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return pc.sum(lengths).as_py() or 0
    if pa.types.is_list(array.type):
        return _text_bytes(array.flatten())
    if pa.types.is_struct(array.type):
        return sum(map(_text_bytes, array.flatten()))
    return 0
