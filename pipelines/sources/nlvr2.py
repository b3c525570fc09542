"""NLVR2: JSON lines although the files are named .json; a row of the task table is a pair of images."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pipelines.sources.config import SourceConfig
from pipelines.sources.files import Refused
from pipelines.sources.gather import Fact, bad, gather, rejections
from pipelines.sources.index import Dropped, Entry
from pipelines.sources.json_files import field, json_lines
from pipelines.sources.record import Rejected

STANDARD = {"dev": "val", "test1": "test"}
LABELS = {"True": True, "False": False}
_IDENTIFIER = re.compile(r"(?P<pair>(?P<split>[a-z]+\d?)-\d+-\d+)-\d+")


def entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """The pairs with their statements; a pair's images are `<pair>-img0.png` (left) and `-img1.png` (right)."""
    for pair, found in gather(_facts(config)):
        reference = f"{config.source_name}/{pair}"
        yield from rejections(reference, found)
        if "folder" not in found:
            continue
        theirs = pair.partition("-")[0]
        if split := config.our_split(config.split or theirs, STANDARD):
            names = tuple(f"{found['folder'][0]}/{pair}-img{side}.png" for side in (0, 1))
            yield Entry(reference, split, names, tuple(found["statement"]))
        else:
            dropped[f"split {theirs} is left out by source.splits"] += 1


def _facts(config: SourceConfig) -> Iterator[Fact]:
    for number, item in json_lines(config.path):
        try:
            match = _IDENTIFIER.fullmatch(field(item, "identifier", str))
            if match is None:
                raise Refused("wrong fields", f"{item['identifier'][:80]!r} is not SPLIT-SET-PAIR-SENTENCE")
            # Only training images lie in numbered folders.
            numbered = f"/{field(item, 'directory', (str, int))}" if match["split"] == "train" else ""
            statement = json.dumps(_statement(item))
        except Refused as error:
            yield bad(f"line {number}", error)
        else:
            yield match["pair"], "folder", match["split"] + numbered
            yield match["pair"], "statement", statement


def _statement(item: Any) -> dict[str, Any]:
    label = item.get("label")
    if label is not None and label not in LABELS:
        raise Refused("wrong fields", f"label {label!r} is neither 'True' nor 'False'")
    return {"identifier": item["identifier"], "sentence": field(item, "sentence", str),
            "label": None if label is None else LABELS[label]}
