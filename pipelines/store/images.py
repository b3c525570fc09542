"""Images at ingest: decode within our limits, upright and RGB; shrink and encode anew where that is wished; compare."""
from __future__ import annotations

import hashlib
import io
import warnings

import imagehash
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ashnets.processing import resize, rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
HASHED_SIDE = 128
JPEG_SIDE = 65_500
"""Pixels of the longest side that libjpeg encodes."""


class BadImage(ValueError):
    """An image that is refused; `reason` is the same few words for every image of its kind."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def decode(image: bytes, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    """Decode to upright RGB, transparency on white; raises BadImage.

    The size in the header is checked before a pixel is decoded.
    """
    if not image:
        raise BadImage("empty file", "0 bytes")
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
            opened.load()
            return rgb(_upright(opened))
        except Exception as error:
            raise BadImage("truncated" if "truncated" in str(error) else "broken image", str(error)) from error


def shrink(pixels: UInt8[np.ndarray, "H W 3"], short_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with its shorter side at `short_side` pixels, by Lanczos; never enlarged, and untouched for 0."""
    height, width = pixels.shape[:2]
    shortest = min(height, width)
    if not 0 < short_side < shortest:
        return pixels
    size = (max(1, round(width * short_side / shortest)), max(1, round(height * short_side / shortest)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def to_jpeg(pixels: UInt8[np.ndarray, "H W 3"], quality: int) -> bytes:
    """The picture as a JPEG without any metadata; BadImage where a side is too long for one."""
    if max(pixels.shape[:2]) > JPEG_SIDE:
        raise BadImage("too many pixels",
                       f"{pixels.shape[1]} x {pixels.shape[0]}: a JPEG's side is at most {JPEG_SIDE}")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def picture_class(pixels: UInt8[np.ndarray, "H W 3"]) -> int:
    """A stable id of a picture, 0 to 2**63 - 1: equal pixels give equal ids, in every store and for ever."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def perceptual_hash(pixels: UInt8[np.ndarray, "H W 3"]) -> int:
    """64 bits from the low frequencies (imagehash's pHash): shrinking or encoding anew changes few of them."""
    # imagehash shrinks by Lanczos, which is slow on large pictures: averaging areas comes first.
    return int(str(imagehash.phash(Image.fromarray(resize(pixels, HASHED_SIDE)))), 16)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image
