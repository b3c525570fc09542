"""Flickr30k as published: results_20130124.token, results.csv (bars between columns), flickr_annotations_30k.csv."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator

from pipelines.errors import UserError
from pipelines.sources.config import SourceConfig
from pipelines.sources.files import Refused
from pipelines.sources.gather import Fact, bad, gather, rejections
from pipelines.sources.index import Dropped, Entry
from pipelines.sources.json_files import text_lines
from pipelines.sources.record import Rejected
from pipelines.sources.text_tables import table_rows

_TOKEN = re.compile(r"(?P<image>[^\t#]+)#(?P<number>\d+)\t(?P<caption>.*)")


def entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """The images with their captions, by name; only flickr_annotations_30k.csv knows splits itself."""
    _, first = next(text_lines(config.path), (0, ""))
    if _TOKEN.fullmatch(first):
        facts = _token(config.path)
    elif first.startswith("image_name|"):
        facts = _bars(config.path)
    elif "filename" in first.split(",") and "raw" in first.split(","):
        facts = _annotations(config.path)
    else:
        raise UserError(f"{config.path}: its first line is neither that of results_20130124.token, of results.csv nor "
                        "of flickr_annotations_30k.csv; for another captions file take source.format=folder")
    for image, found in gather(facts):
        reference = f"{config.source_name}/{image.rpartition('.')[0] or image}"
        yield from rejections(reference, found)
        theirs = found["split"][0] if "split" in found else config.one_split
        if "caption" not in found:
            continue
        if split := config.our_split(theirs):
            yield Entry(reference, split, (image,), tuple(found["caption"]),
                        {"flickr_id": image.rpartition(".")[0]})
        else:
            dropped[f"split {theirs} is left out by source.splits"] += 1


def _token(path: str) -> Iterator[Fact]:
    for number, line in text_lines(path):
        if match := _TOKEN.fullmatch(line):
            yield match["image"], "caption", match["caption"]
        elif line.strip():
            yield bad(f"line {number}", Refused("wrong fields", f"not IMAGE#NUMBER, tab, caption: {line[:120]!r}"))


def _bars(path: str) -> Iterator[Fact]:
    # The copy that goes round lacks a bar in one line, 4199319526.jpg's last: that caption is refused.
    for number, line in text_lines(path):
        fields = [text.strip() for text in line.split("|", 2)]
        if number > 1 and len(fields) == 3:
            yield fields[0], "caption", fields[2]
        elif number > 1 and line.strip():
            yield bad(f"line {number}", Refused("wrong fields", f"not IMAGE| NUMBER| CAPTION: {line[:120]!r}"))


def _annotations(path: str) -> Iterator[Fact]:
    for number, row in table_rows(path, ",", ("raw", "split", "filename")):
        try:
            if isinstance(row, Refused):
                raise row
            captions = json.loads(row["raw"])
            if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
                raise ValueError("`raw` is no list of texts")
            yield row["filename"], "split", row["split"]
            yield from ((row["filename"], "caption", caption) for caption in captions)
        except Refused as error:
            yield bad(f"line {number}", error)
        except (KeyError, ValueError, RecursionError) as error:
            yield bad(f"line {number}", Refused("wrong fields", str(error)))
