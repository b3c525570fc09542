"""Karpathy's splits of COCO and Flickr30k: dataset_coco.json, dataset_flickr30k.json."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.sources.config import SourceConfig
from pipelines.sources.files import Refused
from pipelines.sources.index import Dropped, Entry
from pipelines.sources.json_files import field, json_items
from pipelines.sources.record import Rejected

STANDARD = {"restval": "train"}
"""One trains on train and restval together."""


def entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """The images in the file's order; the first `source.first_captions` sentences of each (0: all)."""
    for number, item in enumerate(json_items(config.path, "images.item")):
        try:
            entry = _entry(item, config)
        except Refused as error:
            yield Rejected(f"{config.source_name}/images[{number}]", error.reason, error.detail)
            continue
        if entry.split:
            yield entry
        else:
            dropped[f"split {item['split']} is left out by source.splits"] += 1


def _entry(item: Any, config: SourceConfig) -> Entry:
    filename = field(item, "filename", str)
    # COCO's images lie in a folder a year; Flickr30k's file has neither filepath nor cocoid.
    folder = f"{field(item, 'filepath', str)}/" if "filepath" in item else ""
    known = str(field(item, "cocoid", int)) if "cocoid" in item else filename.rpartition(".")[0]
    captions = [field(sentence, "raw", str) for sentence in field(item, "sentences", list)]
    metadata = {"coco_id": item["cocoid"]} if "cocoid" in item else {"flickr_id": known}
    return Entry(f"{config.source_name}/{known}", config.our_split(field(item, "split", str), STANDARD),
                 (folder + filename, filename), tuple(captions[:config.first_captions or None]), metadata)
