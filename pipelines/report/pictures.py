"""Pictures for a page that loads nothing: small WebP images as data URIs."""
from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from ashnets.processing import decode_image

SIDE = 128
QUALITY = 82


def thumbnail(image: bytes, side: int = SIDE) -> str:
    """The encoded `image`, shrunk to at most `side` pixels a side (never enlarged), as a data URI.

    Raises BadSample where it cannot be decoded.
    """
    small = Image.fromarray(np.asarray(decode_image(image, side, side)))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
