"""The one gate to Parquet: the store's schema, and the only functions that read or write a Parquet file.

A Parquet file may come from a stranger. Two things are dangerous in it: an extension type whose values are pickles
(reading a value runs code), and a small file that decodes to gigabytes. So extension types are refused before a value
is touched, reads go in batches that are bounded in rows and bytes (bounds.py), and nothing in the footer is trusted. A
test shows that nobody else calls pyarrow's Parquet readers.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files import writing
from pipelines.location import Place, locate, place_of, reaching
from pipelines.store.bounds import Unbounded, bounded_rows, expand, repeated_lists

STORE_SCHEMA = pa.schema([
    ("sample_id", pa.string()),
    ("source", pa.string()),
    ("split", pa.string()),
    ("image", pa.binary()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("sha256", pa.string()),
    ("image_class", pa.int64()),
    ("captions", pa.list_(pa.string())),
    ("metadata", pa.string()),
    ("batch_id", pa.string()),
])
"""A row of the image-text store: one image, encoded as it is stored, with all its captions."""

# Without a buffer, or with pre_buffer, pyarrow holds whole column chunks, as large as their writer made them.
_READING: dict[str, Any] = {"arrow_extensions_enabled": False, "page_checksum_verification": True,
                            "pre_buffer": False, "buffer_size": 2**20}
MAX_TABLE_BYTES = 2**31
"""Decoded bytes that `read_row_groups` holds at most."""


def open_parquet(path: str | Place) -> pq.ParquetFile:
    """Open one Parquet file, having refused every extension type in it.

    Raises FileNotFoundError where there is no file, ValueError naming the file where it cannot be read as Parquet,
    and ValueError naming the column where one has an extension type.
    """
    system, inner = locate(path)
    with reaching(path):
        if not system.get_file_info(inner).is_file:
            raise FileNotFoundError(f"{path}: no such Parquet file")
    try:
        with reaching(path):
            file = pq.ParquetFile(inner, filesystem=system, **_READING)
            for field in file.schema_arrow:
                _refuse_extensions(field, field.name, path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # a column's name may be no text
        raise ValueError(f"{path} is not a readable Parquet file ({_first_line(error)}): "
                         "restore it, or remove it and make it again") from error
    return file


def iter_batches(path: str | Place, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None,
                 rows: int = 64) -> Iterator[pa.RecordBatch]:
    """The file's rows in order, in batches of at most `rows`, fewer where their texts could decode to much more than
    the file holds; errors as for `open_parquet`, and ValueError where a single row decodes to more than
    `bounds.MAX_BATCH_BYTES`.
    """
    system, inner = locate(path)
    with open_parquet(path) as file, system.open_input_file(inner) as raw:
        _check_names(file.schema_arrow, columns, path)
        wanted = file.schema_arrow.names if columns is None else list(columns)
        groups = range(file.metadata.num_row_groups) if row_groups is None else list(row_groups)
        try:
            with reaching(path):
                size = bounded_rows(file, raw, wanted, groups, rows)
                lists = repeated_lists(file, raw, wanted, groups)
                if lists:
                    for group in groups:
                        yield from _careful_batches(path, file, lists, group, wanted, size)
                else:
                    yield from file.iter_batches(size, row_groups=groups, columns=wanted)
        except Unbounded as error:
            raise ValueError(f"{path}: {error}: refused, since a small file must not decode to gigabytes") from error
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged ({_first_line(error)}): "
                             "restore it, or remove it and make it again") from error


def _careful_batches(path: str | Place, file: pq.ParquetFile, lists: list[str], group: int, wanted: list[str], size: int
                     ) -> Iterator[pa.RecordBatch]:
    """One row group, the leaves `lists` read as indices before they are expanded.

    A batch over two row groups would hold two dictionaries, which pyarrow cannot put together below lists.
    """
    system, inner = locate(path)
    with pq.ParquetFile(inner, filesystem=system, metadata=file.metadata, read_dictionary=lists, **_READING) as careful:
        for batch in careful.iter_batches(size, row_groups=[group], columns=wanted):
            yield from expand(batch, file.schema_arrow)


def read_row_groups(path: str | Place, row_groups: Sequence[int], columns: Sequence[str] | None = None,
                    max_bytes: int = MAX_TABLE_BYTES) -> pa.Table:
    """The named row groups, in the order given, as one table that is decoded in bounded batches.

    Raises ValueError where the decoded rows pass `max_bytes`; otherwise as `open_parquet`.
    """
    batches, held = [], 0
    for batch in iter_batches(path, columns, row_groups):
        held += batch.nbytes
        if held > max_bytes:
            raise ValueError(f"{path}: row groups {list(row_groups)} decode to more than {max_bytes:,} bytes")
        batches.append(batch)
    with open_parquet(path) as file:
        schema = file.schema_arrow
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    return pa.Table.from_batches(batches).select(schema.names) if batches else schema.empty_table()


def row_group_sizes(path: str | Place) -> list[int]:
    """Rows of every row group of the file, in order."""
    with open_parquet(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]


def check_columns(schema: pa.Schema, expected: pa.Schema, where: str | Place) -> None:
    """Raise ValueError naming file and column unless `schema` has every expected column with its type.

    Further columns are no error: whoever reads names the columns that he wants.
    """
    for field in expected:
        if field.name not in schema.names:
            raise ValueError(f"{where}: column {field.name!r} is missing; it has {', '.join(schema.names)}")
        found = schema.field(field.name).type
        if found != field.type:
            raise ValueError(f"{where}: column {field.name!r} has type {found}, expected {field.type}")


def write_parquet(table: pa.Table, path: str | Place, row_group: int = 256) -> int:
    """Write `table` to `path` whole or not at all; returns the file's size in bytes.

    Images are compressed already and stay as they are, everything else goes through zstd.
    """
    compression = {leaf: "none" if leaf.split(".")[0] in ("image", "images") else "zstd"
                   for leaf in _leaves(table.schema)}
    place = place_of(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    with writing(place) as file:
        pq.write_table(table, file, row_group_size=row_group, compression=compression,
                       use_dictionary=[n for n in ("source", "split", "batch_id") if n in table.schema.names],
                       write_statistics=False, write_page_checksum=True)
        return file.tell()


def _refuse_extensions(field: pa.Field, name: str, path: str | Place) -> None:
    # The metadata is looked at as well, since a type that nobody has registered yet shows itself there only.
    labelled = b"ARROW:extension:name" in (field.metadata or {})
    if labelled or isinstance(field.type, pa.BaseExtensionType):
        raise ValueError(f"{path}: column {name!r} has the extension type {field.type}, which may hide code: "
                         "write it as a plain column")
    children = [field.type.field(i) for i in range(field.type.num_fields)]
    if pa.types.is_dictionary(field.type):
        children = [pa.field("values", field.type.value_type)]
    for child in children:
        _refuse_extensions(child, f"{name}.{child.name}", path)


def _check_names(schema: pa.Schema, columns: Sequence[str] | None, path: str | Place) -> None:
    for name in columns or ():
        if name not in schema.names:
            raise ValueError(f"{path}: column {name!r} is missing; it has {', '.join(schema.names)}")


def _leaves(schema: pa.Schema) -> list[str]:
    """Parquet's dotted names of the leaf columns."""
    def walk(field: pa.Field) -> Iterator[str]:
        if pa.types.is_list(field.type):
            yield from (f"{field.name}.list.{leaf}" for leaf in walk(pa.field("element", field.type.value_type)))
        elif pa.types.is_struct(field.type):
            for i in range(field.type.num_fields):
                yield from (f"{field.name}.{leaf}" for leaf in walk(field.type.field(i)))
        else:
            yield field.name
    return [leaf for field in schema for leaf in walk(field)]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
