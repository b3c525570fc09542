"""CSV and TSV files with a header, as a stream of rows; a damaged file is one error that names it and the mend."""
from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from pipelines.errors import UserError
from pipelines.sources.files import Refused, open_file

MAX_FIELD = 64 * 2**20


def table_rows(place: str, delimiter: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | Refused]]:
    """Line numbers (of the row's end) and rows; a short row lacks its last columns, one that is too long is refused.

    Fields may be quoted, but not in files whose delimiter is a tab or a bar. Raises UserError where a column is
    missing, the file is not UTF-8, a line has no end, or a quotation never ends.
    """
    csv.field_size_limit(MAX_FIELD)
    with open_file(place) as stream:
        reader = csv.reader(_lines(place, stream), delimiter=delimiter,
                            quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE)
        try:
            header = [name.strip() for name in next(reader, [])]
            for column in columns:
                if header.count(column) != 1:
                    fault = "stands there twice" if column in header else "is missing"
                    raise UserError(f"{place}: column {column!r} {fault}; its first line names "
                                    f"{', '.join(header) or 'none'}")
            for row in reader:
                if any(row[len(header):]):
                    told = f"{len(row)} fields under {len(header)} names (is a text with {delimiter!r} not quoted?)"
                    yield reader.line_num, Refused("wrong fields", f"{told}: {row!r:.120}")
                elif row:
                    yield reader.line_num, dict(zip(header, row, strict=False))
        except UnicodeDecodeError as error:
            raise UserError(f"{place} is not UTF-8 text (after line {reader.line_num}): write it as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{place} is damaged before line {reader.line_num} ({error}): is a quotation not closed?"
                            ) from error
        except OSError as error:
            raise UserError(f"{place} cannot be read ({error}): restore it or download it again") from error


def _lines(place: str, stream: BinaryIO) -> Iterator[str]:
    """The lines with their ends; one without an end would be held whole before anybody could look at it."""
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    while line := text.readline(MAX_FIELD + 1):
        if len(line) > MAX_FIELD:
            raise UserError(f"{place} has a line of over {MAX_FIELD:,} characters: it has another format than "
                            "source.format says")
        yield line
