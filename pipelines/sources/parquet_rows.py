"""Parquet or Arrow files with images in them or beside them: any table with named columns, and img2dataset's output."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.location import join
from pipelines.sources.config import is_split
from pipelines.sources.files import MAX_IMAGE_BYTES, Refused, read_image
from pipelines.sources.record import Rejected, Sample
from pipelines.store.ipc import ENDINGS as ARROW
from pipelines.store.ipc import ipc_schema, is_ipc, iter_ipc_batches
from pipelines.store.schema import iter_batches, open_parquet

SUCCESS = "success"
ENDINGS = (".parquet", *ARROW)
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list)


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; an empty name: there is no such column."""

    image: str
    caption: str
    split: str = ""
    id: str = ""
    status: str = ""
    """img2dataset's: only rows with `success` have an image."""
    url: str = ""

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys(filter(None, (self.image, self.caption, self.split, self.id, self.status, self.url))))


@dataclass(frozen=True)
class Piece:
    """A row group, the unit of reading; of an Arrow file the whole."""

    file: str
    row_group: int
    first_row: int


@dataclass(frozen=True)
class ParquetSource:
    """A source (see record.py) whose parts are row groups, or Arrow files."""

    name: str
    settings: Mapping[str, Any]
    folder: str
    pieces: tuple[Piece, ...]
    columns: Columns
    split: str
    splits: Mapping[str, str]
    """What the split column's values become; an empty one: the row is left out."""
    images: str
    """Folder of the images where the image column holds names."""

    @property
    def parts(self) -> int:
        """Number of pieces."""
        return len(self.pieces)

    def read(self, part: int) -> Iterator[Sample | Rejected]:
        """The samples of one piece; UserError naming the file where it is damaged."""
        piece = self.pieces[part]
        for number, row in enumerate(self._rows(piece), start=piece.first_row):
            reference = f"{self.name}/{piece.file.removesuffix('.parquet')}/{number}"
            try:
                sample = self._sample(row, reference)
            except Refused as error:
                yield Rejected(reference, error.reason, error.detail)
                continue
            if sample is not None:
                yield sample

    def _rows(self, piece: Piece) -> Iterator[Mapping[str, Any]]:
        place, names = join(self.folder, piece.file), self.columns.names
        try:
            for batch in (iter_ipc_batches(place, names) if is_ipc(piece.file) else
                          iter_batches(place, names, [piece.row_group])):
                yield from _as_bytes(batch).to_pylist()
        except ValueError as error:  # the gate's; only a UserError keeps its meaning on the way to the driver
            raise UserError(str(error)) from error

    def _sample(self, row: Mapping[str, Any], reference: str) -> Sample | None:
        columns = self.columns
        if columns.status and row[columns.status] != SUCCESS.encode():
            return None
        split = self.split
        if columns.split:
            theirs = _text(row[columns.split], columns.split)
            split = self.splits.get(theirs, theirs)
            if split and not is_split(split):
                raise Refused("wrong fields", f"{split[:80]!r} cannot be a split's name")
        if not split:
            return None
        captions = row[columns.caption]
        texts = [captions] if isinstance(captions, bytes) else captions or []
        metadata = {"url": _text(row[columns.url], columns.url)} if columns.url and row[columns.url] else {}
        known = row[columns.id] if columns.id else None
        sample_id = f"{self.name}/{_text(known, columns.id) if isinstance(known, bytes) else known}"
        return Sample(sample_id if known is not None else reference, split, self._image(row[columns.image]),
                      tuple(_text(text, columns.caption) for text in texts if text is not None), metadata)

    def _image(self, value: Any) -> bytes:
        if isinstance(value, dict):  # as Hugging Face's datasets write it: {bytes, path}
            value = value["bytes"]
        if value is None:
            raise Refused("missing file", f"column {self.columns.image!r} is empty")
        if self.images:
            return read_image(self.images, [_text(value, self.columns.image)])
        if len(value) > MAX_IMAGE_BYTES:
            raise Refused("too many bytes", f"{len(value):,} bytes, more than {MAX_IMAGE_BYTES:,}")
        return bytes(value)


def find_pieces(folder: str, files: Sequence[str], columns: Columns, names_images: bool) -> tuple[Piece, ...]:
    """The row groups of all files, and Arrow files; ValueError where one cannot be read, or lacks a column or its type.
    """
    def of_file(name: str) -> list[Piece]:
        if is_ipc(name):
            check_columns(ipc_schema(join(folder, name)), columns, names_images, join(folder, name))
            return [Piece(name, 0, 0)]
        with open_parquet(join(folder, name)) as opened:
            check_columns(opened.schema_arrow, columns, names_images, join(folder, name))
            pieces, first = [], 0
            for group in range(opened.metadata.num_row_groups):
                pieces.append(Piece(name, group, first))
                first += opened.metadata.row_group(group).num_rows
            return pieces
    with ThreadPoolExecutor(8) as pool:
        return tuple(piece for pieces in pool.map(of_file, files) for piece in pieces)


def check_columns(schema: pa.Schema, columns: Columns, names_images: bool, file: str) -> None:
    """Raise UserError naming file and column unless the columns are there, once, and hold what they should."""
    for name in columns.names:
        if name not in schema.names:
            raise UserError(f"{file}: column {name!r} is missing; it has {', '.join(schema.names)}: name it by "
                            "source.image_column, source.caption_column, source.split_column or source.id_column")
        if schema.names.count(name) > 1:
            raise UserError(f"{file}: {schema.names.count(name)} columns have the name {name!r}: give each its own")
    found = {name: _values(schema.field(name).type) for name in columns.names}

    def expect(name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise UserError(f"{file}: column {name!r} has type {schema.field(name).type}, expected {wanted}")

    image, caption = found[columns.image], found[columns.caption]
    if pa.types.is_struct(image):
        children = {image.field(i).name: image.field(i).type for i in range(image.num_fields)}
        fits = "bytes" in children and _is(children["bytes"], _BYTES) and not names_images
    else:
        fits = _is(image, _TEXT if names_images else _BYTES)
    expect(columns.image, fits, "file names as text, since source.images is set" if names_images else (
        "encoded images as bytes; if it holds file names, name their folder by source.images"))
    expect(columns.caption, _is(caption.value_type if _is(caption, _LISTS) else caption, _TEXT),
           "text or a list of texts")
    for name in filter(None, (columns.split, columns.status, columns.url)):
        expect(name, _is(found[name], _TEXT), "text")
    if columns.id:
        expect(columns.id, _is(found[columns.id], (*_TEXT, pa.types.is_integer)), "text or whole numbers")


def _is(kind: pa.DataType, kinds: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(is_kind(kind) for is_kind in kinds)


def _values(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, which a dictionary (a category of pandas) may hold."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def count_failures(folder: str, files: Sequence[str]) -> Counter[str]:
    """img2dataset's rows that have no image, by their `status`."""
    def of_file(name: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for batch in iter_batches(join(folder, name), ["status"], rows=8192):
            found.update(batch["status"].to_pylist())
        return found
    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(of_file, files), Counter[str]())
    del total[SUCCESS]
    return Counter({f"img2dataset: {status}": count for status, count in total.items()})


def _as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Texts as bytes: reading a text that is not UTF-8 would fail the whole batch."""
    def column(values: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if _is(values.type, _TEXT):
            return values.cast(pa.large_binary())
        if _is(values.type, _LISTS) and _is(values.type.value_type, _TEXT):
            return values.cast(pa.large_list(pa.large_binary()))
        return values
    return pa.record_batch([column(values) for values in batch.columns], names=batch.schema.names)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, bytes):
        raise Refused("wrong fields", f"column {column!r} holds {value!r}, expected text")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refused("wrong encoding", f"column {column!r} is not UTF-8") from error
