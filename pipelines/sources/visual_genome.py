"""Visual Genome: region_descriptions.json and image_data.json, without the images that COCO evaluates on."""
from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from pipelines.errors import UserError
from pipelines.sources.config import SourceConfig
from pipelines.sources.files import Refused
from pipelines.sources.gather import Fact, bad, gather, rejections
from pipelines.sources.index import Dropped, Entry
from pipelines.sources.json_files import field, json_items
from pipelines.sources.record import Rejected

DROPPED = "Visual Genome image lies in COCO val or test"


def entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """The images with the phrases of their regions, each phrase once, by id."""
    yield from joined(config, dropped, _phrases(config.path))


def joined(config: SourceConfig, dropped: Dropped, texts: Iterator[Fact]) -> Iterator[Entry | Rejected]:
    """The images that may be trained on with their `text` facts, each text once, by id."""
    split = config.our_split(config.one_split)
    for image_id, found in gather(chain(kept_images(config, dropped), texts)):
        reference = f"{config.source_name}/{image_id}"
        yield from rejections(reference, found)
        if "image" in found:
            # Whoever unpacked both archives into one folder has the file there.
            name, *others = dict.fromkeys(found["image"])
            yield from (Rejected(reference, "duplicate id", f"{other!r:.200} has the id of {name!r:.200}")
                        for other in others)
            metadata = {"visual_genome_id": int(image_id)} | ({"coco_id": int(coco_id)} if (
                coco_id := found["coco_id"][0]) else {})
            yield Entry(reference, split, (name, name.rpartition("/")[2]), tuple(dict.fromkeys(found.get("text", ()))),
                        metadata)
        elif "text" in found and "held out" not in found:
            yield Rejected(reference, "unknown image", f"{len(found['text'])} texts of an image that "
                                                       "source.image_data does not list")


def held_out_coco_ids(files: tuple[str, ...]) -> np.ndarray:
    """Sorted COCO ids of val and test, from dataset_coco.json (its val and test) or COCO's own files (all of them)."""
    if not files:
        raise UserError("source.coco_held_out is missing: half of Visual Genome's images are COCO's, some of them in "
                        "COCO's val or test. Name Karpathy's dataset_coco.json, or captions_val2014.json and the like")
    ids: list[int] = []
    for file in files:
        for item in json_items(file, "images.item"):
            try:
                karpathy = "cocoid" in item
                if not karpathy or field(item, "split", str) in ("val", "test"):
                    ids.append(field(item, "cocoid" if karpathy else "id", int))
            except Refused as error:
                raise UserError(f"source.coco_held_out: {file}: {error}") from error
    return np.unique(np.array(ids, np.int64))


def kept_images(config: SourceConfig, dropped: Dropped) -> Iterator[Fact]:
    """A fact `image` for every image that may be trained on, and `held out` for the others."""
    held_out = held_out_coco_ids(config.coco_held_out)
    for number, item in enumerate(json_items(config.image_data, "item")):
        try:
            image_id = str(field(item, "image_id" if "image_id" in item else "id", int))
            coco_id = item.get("coco_id")
            if coco_id is not None:
                at = np.searchsorted(held_out, field(item, "coco_id", int))
                if at < len(held_out) and held_out[at] == coco_id:
                    dropped[DROPPED] += 1
                    yield image_id, "held out", ""
                    continue
            # https://.../VG_100K_2/1.jpg: the last two parts are folder and file as they are unpacked.
            yield image_id, "image", "/".join(field(item, "url", str).split("/")[-2:])
            yield image_id, "coco_id", "" if coco_id is None else str(coco_id)
        except Refused as error:
            yield bad(f"image_data[{number}]", error)


def _phrases(path: str) -> Iterator[Fact]:
    for number, item in enumerate(json_items(path, "item")):
        try:
            for region in field(item, "regions", list):
                # The region's image_id, which older files spell otherwise, repeats the item's id.
                image_id = field(item if "id" in item else region, "id" if "id" in item else "image_id", int)
                yield str(image_id), "text", field(region, "phrase", str)
        except Refused as error:
            yield bad(f"region_descriptions[{number}]", error)
