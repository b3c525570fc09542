"""JSON of any size as a stream of items, and JSON lines; a damaged file is one error that names it and the mend."""
from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from typing import Any

import ijson

from pipelines.errors import UserError
from pipelines.sources.files import Refused, open_file

MAX_LINE = 64 * 2**20


def json_items(place: str, path: str) -> Iterator[Any]:
    """The items at `path` in ijson's notation: `images.item`; `item` for those of a list that is the whole file.

    Raises UserError where the file is cut, not JSON or not UTF-8, or has no such list with an item in it.
    """
    found = False
    with open_file(place) as stream:
        try:
            for item in ijson.items(stream, path, use_float=True):
                found = True
                yield item
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise UserError(f"{place} {_fault(place, str(error))}") from error
        except OSError as error:
            raise UserError(f"{place} cannot be read ({error}): restore it or download it again") from error
    if not found:
        where = f"no list {path.removesuffix('.item')!r}" if path != "item" else "no list"
        raise UserError(f"{place} has {where} with an item in it: it has another format than source.format says, or "
                        "is not the file that is meant")


def _fault(place: str, error: str) -> str:
    with open_file(place) as stream:
        start = stream.read(4)
    told = " ".join(error.split())[:120]
    if start[:2] == b"PK":
        return "is a zip archive, not JSON: unpack it and name the file in it"
    if "UTF8" in error or "codec" in error or start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"is not UTF-8 text ({told}): write it as UTF-8"
    if "EOF" in error or "ncomplete" in error or "premature" in error:
        return f"is cut short or is not JSON ({told}): download it again"
    return f"is not JSON ({told}): name another file, or restore it"


def text_lines(place: str) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and texts of the file's lines; UserError where it is not UTF-8 or a line has no end."""
    with open_file(place) as stream:
        number = 0
        try:
            while line := stream.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE:
                    raise UserError(f"{place} has a line (number {number}) of over {MAX_LINE:,} bytes: it has another "
                                    "format than source.format says")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{place} is not UTF-8 text (line {number}): write it as UTF-8") from error
        except OSError as error:
            raise UserError(f"{place} cannot be read ({error}): restore it or download it again") from error


def json_lines(place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a file with a JSON object a line; UserError names a line that is none."""
    for number, line in text_lines(place):
        if line.strip():
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place} has no whole JSON in line {number}: download it again, or mend that line"
                                ) from error
            if not isinstance(item, dict):
                raise UserError(f"{place} has no JSON object in line {number}: it has another format than "
                                "source.format says")
            yield number, item


def field(item: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """`item[name]`, raising Refused unless it is there and of `kind` (`wrong fields`), and UTF-8 (`wrong encoding`)."""
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refused("wrong fields", f"{name!r} is missing or no {_word(kind)}: {reprlib.repr(item)[:120]}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused("wrong encoding", f"{name!r} holds half a character: {value[:80]!r}") from error
    return value


def _word(kind: type | tuple[type, ...]) -> str:
    return " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
