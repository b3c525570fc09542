"""What makes a sample fit for the store: an image that decodes within our limits, and words."""
from __future__ import annotations

import hashlib
import io
import json
import warnings
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipelines.sources.record import Rejected, Sample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


class BadImage(ValueError):
    """An image that is refused; `reason` is the same few words for every image of its kind."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def to_row(sample: Sample, source: str, batch_id: str, max_pixels: int) -> dict[str, Any] | Rejected:
    """The store's row of one sample (see STORE_SCHEMA), or why it is refused."""
    captions = [caption.strip() for caption in sample.captions if caption.strip()]
    if not captions:
        return Rejected(sample.sample_id, "empty caption", f"{len(sample.captions)} captions, none with words")
    try:
        pixels = decode(sample.image, max_pixels)
    except BadImage as error:
        return Rejected(sample.sample_id, error.reason, error.detail)
    return {
        "sample_id": sample.sample_id, "source": source, "split": sample.split, "image": sample.image,
        "width": pixels.shape[1], "height": pixels.shape[0], "sha256": hashlib.sha256(sample.image).hexdigest(),
        "image_class": picture_class(pixels), "captions": captions,
        "metadata": json.dumps(sample.metadata, sort_keys=True, ensure_ascii=False), "batch_id": batch_id,
    }


def decode(image: bytes, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image to RGB; raises BadImage. The header's size is checked before a pixel is decoded."""
    try:
        with warnings.catch_warnings():
            # Pillow's own limit only warns up to twice its value: ours is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(image), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("too many pixels", str(error)) from error
    except Exception as error:  # Pillow raises far more than OSError on hostile bytes
        raise BadImage("not an image", f"{len(image)} bytes, no {', '.join(FORMATS)}") from error
    with opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise BadImage("too many pixels", f"{width} x {height} is over data.max_pixels={max_pixels}")
        try:
            return np.asarray(opened.convert("RGB"))
        except Exception as error:
            raise BadImage("broken image", str(error)) from error


def picture_class(pixels: UInt8[np.ndarray, "H W 3"]) -> int:
    """A stable id of a picture, 0 to 2**63 - 1: equal pixels give equal ids, in every store and for ever."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1
