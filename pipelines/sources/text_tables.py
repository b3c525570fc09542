"""CSV and TSV files with a header, as a stream of rows; a damaged file is one error that names it and the mend."""
from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from pipelines.errors import UserError
from pipelines.sources.files import open_file

MAX_FIELD = 64 * 2**20


def table_rows(place: str, delimiter: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers (of the row's end) and rows; a short row lacks its last columns.

    Fields may be quoted, but not in files whose delimiter is a tab or a bar. Raises UserError where a column is
    missing, the file is not UTF-8, or a quotation never ends.
    """
    csv.field_size_limit(MAX_FIELD)
    with open_file(place) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter,
                            quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE)
        try:
            header = [name.strip() for name in next(reader, [])]
            for column in columns:
                if column not in header:
                    raise UserError(f"{place}: column {column!r} is missing; its first line names "
                                    f"{', '.join(header) or 'none'}")
            for row in reader:
                if row:
                    yield reader.line_num, dict(zip(header, row, strict=False))
        except UnicodeDecodeError as error:
            raise UserError(f"{place} is not UTF-8 text (after line {reader.line_num}): write it as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{place} is damaged before line {reader.line_num} ({error}): is a quotation not closed?"
                            ) from error
        except OSError as error:
            raise UserError(f"{place} cannot be read ({error}): restore it or download it again") from error
