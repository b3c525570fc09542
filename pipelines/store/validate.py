"""What makes a sample fit for the store: an image that decodes within our limits, and words."""
from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pipelines.config import DataConfig
from pipelines.sources.record import Rejected, Sample
from pipelines.store.images import BadImage, decode, perceptual_hash, picture_class, shrink, to_jpeg

MAX_ID = 1024
"""Characters of a sample's id; the driver of an ingest holds the ids of all its rows."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
UNCOMPARED = ("emoji", "scenes")
"""Sources whose pictures are alike on purpose: they are never compared for duplicates."""


def to_row(sample: Sample, source: str, batch_id: str, data: DataConfig) -> dict[str, Any] | Rejected:
    """The store's row of one sample (see STORE_SCHEMA) and its perceptual hash (`phash`; None in UNCOMPARED sources);
    or why it is refused.
    """
    if len(sample.sample_id) > MAX_ID or _CONTROL.search(sample.sample_id):
        return Rejected(sample.sample_id[:MAX_ID], "unsafe name",
                        f"an id of {len(sample.sample_id):,} characters: at most {MAX_ID:,}, none a control character")
    captions = [caption.strip() for caption in sample.captions if caption.strip()]
    if not captions:
        return Rejected(sample.sample_id, "empty caption", f"{len(sample.captions)} captions, none with words")
    longest = max(map(len, captions))
    if longest > data.max_caption:
        return Rejected(sample.sample_id, "caption too long",
                        f"{longest:,} characters, over data.max_caption={data.max_caption}")
    metadata = dict(sample.metadata)
    try:
        for text in (sample.sample_id, sample.split, *captions, json.dumps(metadata, ensure_ascii=False)):
            text.encode()
    except UnicodeEncodeError as error:
        return Rejected(sample.sample_id, "wrong encoding", str(error))
    try:
        pixels = decode(sample.image, data.max_pixels)
    except BadImage as error:
        return Rejected(sample.sample_id, error.reason, error.detail)
    image, image_class = sample.image, picture_class(pixels)
    phash = None if source in UNCOMPARED else perceptual_hash(pixels)
    if phash is not None:
        metadata["phash"] = f"{phash:016x}"
    small = shrink(pixels, data.short_side)
    if data.encode == "jpeg" or small is not pixels:
        metadata["original_sha256"] = hashlib.sha256(image).hexdigest()
        try:
            image = to_jpeg(small, data.quality)
        except BadImage as error:
            return Rejected(sample.sample_id, error.reason, error.detail)
    return {
        "sample_id": sample.sample_id, "source": source, "split": sample.split, "image": image,
        "width": small.shape[1], "height": small.shape[0], "sha256": hashlib.sha256(image).hexdigest(),
        "image_class": image_class, "captions": captions,
        "metadata": json.dumps(metadata, sort_keys=True, ensure_ascii=False), "batch_id": batch_id, "phash": phash,
    }
