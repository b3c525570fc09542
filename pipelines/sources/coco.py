"""MSCOCO captions, as published: {info, images, licenses, annotations}, one file a split."""
from __future__ import annotations

import re
from collections.abc import Iterator

from pipelines.sources.config import SourceConfig, file_name
from pipelines.sources.files import Refused
from pipelines.sources.gather import Fact, bad, gather, rejections
from pipelines.sources.index import Dropped, Entry
from pipelines.sources.json_files import field, json_items
from pipelines.sources.record import Rejected

_OFFICIAL = re.compile(r"captions_((train|val)\d{4})\.json")


def entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """The images of a captions file with their captions, by id.

    The split is source.split, else the one that the official file name (captions_val2014.json) tells.
    """
    official = _OFFICIAL.fullmatch(file_name(config.path))
    split = config.our_split(config.split or (official[2] if official else config.one_split))
    folder = f"{official[1]}/" if official else ""
    for image_id, found in gather(_facts(config.path)):
        reference = f"{config.source_name}/{image_id}"
        yield from rejections(reference, found)
        if "image" in found:
            name, *others = dict.fromkeys(found["image"])
            yield from (Rejected(reference, "duplicate id", f"{other!r:.200} has the id of {name!r:.200}")
                        for other in others)
            yield Entry(reference, split, (name, folder + name), tuple(found.get("caption", ())),
                        {"coco_id": int(image_id)})
        elif "caption" in found:
            yield Rejected(reference, "unknown image", f"{len(found['caption'])} captions of an image that "
                                                       "`images` does not list")


def _facts(path: str) -> Iterator[Fact]:
    for number, item in enumerate(json_items(path, "images.item")):
        try:
            yield str(field(item, "id", int)), "image", field(item, "file_name", str)
        except Refused as error:
            yield bad(f"images[{number}]", error)
    for number, item in enumerate(json_items(path, "annotations.item")):
        try:
            yield str(field(item, "image_id", int)), "caption", field(item, "caption", str)
        except Refused as error:
            yield bad(f"annotations[{number}]", error)
