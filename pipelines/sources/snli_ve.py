"""SNLI-VE: JSON lines; a row of the task table is a Flickr30k image with its hypotheses, never the premise."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pipelines.sources.config import SourceConfig, file_name
from pipelines.sources.files import Refused
from pipelines.sources.gather import Fact, bad, gather, rejections
from pipelines.sources.index import Dropped, Entry
from pipelines.sources.json_files import field, json_lines
from pipelines.sources.record import Rejected

STANDARD = {"dev": "val"}
LABELS = {"contradiction": 0, "neutral": 1, "entailment": 2}
_OFFICIAL = re.compile(r"snli_ve_(train|dev|test)\.jsonl")


def entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """The images with their hypotheses. The split is source.split, else the one that the official file name tells."""
    official = _OFFICIAL.fullmatch(file_name(config.path))
    split = config.our_split(config.split or (official[1] if official else config.one_split), STANDARD)
    for flickr_id, found in gather(_facts(config)):
        reference = f"{config.source_name}/{flickr_id}"
        yield from rejections(reference, found)
        if "hypothesis" in found:
            yield Entry(reference, split, (f"{flickr_id}.jpg",), tuple(found["hypothesis"]), {"flickr_id": flickr_id})


def _facts(config: SourceConfig) -> Iterator[Fact]:
    for number, item in json_lines(config.path):
        try:
            # The generator spells it Flickr30K_ID, the parser Flikr30kID; some copies have .jpg behind it.
            spelling = "Flickr30K_ID" if "Flickr30K_ID" in item else "Flikr30kID"
            flickr_id = str(field(item, spelling, (str, int))).removesuffix(".jpg")
            hypothesis = json.dumps(_hypothesis(item))
        except Refused as error:
            yield bad(f"line {number}", error)
        else:
            yield flickr_id, "hypothesis", hypothesis


def _hypothesis(item: Any) -> dict[str, Any]:
    gold = field(item, "gold_label", str)
    if gold not in LABELS:
        raise Refused("no label", f"gold_label {gold!r} is not one of {', '.join(LABELS)}")
    return {"pair_id": field(item, "pairID", str), "hypothesis": field(item, "sentence2", str), "label": LABELS[gold]}
