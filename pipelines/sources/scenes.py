"""The scenes source: emoji composed at random, with captions that follow from the known layout.

A scene is a pure function of (seed, split, index): any of them, in any number, alone, in any process, at any size.
"""
from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from pipelines.sources.emoji import JPEG_QUALITY, Emoji, emoji_of_split, encode_jpeg
from pipelines.sources.record import Sample

VOCABULARY = 80
PART = 512
PLACING_TRIES = 120
LITTLE_OVERLAP = 0.05
OBJECTS = ((1, 2, 3), (0.1, 0.4, 0.5))  # numbers of objects, and how often
BACKGROUNDS = {
    "white": (255, 255, 255), "grey": (190, 190, 190), "pink": (255, 190, 210), "yellow": (255, 240, 150),
    "green": (170, 225, 170), "blue": (160, 205, 250), "purple": (205, 175, 240), "orange": (255, 200, 135),
}
# Subcategories of things that can lie in a scene, unlike "arrow" or "person-role".
THINGS = ("animal-", "plant-", "food-fruit", "food-vegetable", "food-sweet", "transport-ground", "transport-water",
          "transport-air", "musical-instrument", "tool", "clothing", "household", "dishware", "sport")


@dataclass(frozen=True)
class Placed:
    """One object of a scene: which emoji, and its square in shares of the side (x to the right, y down)."""

    emoji: Emoji
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """The ground truth of one scene."""

    background: str
    objects: tuple[Placed, ...]

    def draw(self, side: int) -> UInt8[np.ndarray, "S S 3"]:
        """The scene's pixels, RGB, at any side."""
        canvas = np.full((side, side, 3), BACKGROUNDS[self.background], np.float32)
        for placed in self.objects:
            x, y, size = (round(value * side) for value in (placed.x, placed.y, placed.size))
            x, y = min(x, side - size), min(y, side - size)
            glyph = _glyph(placed.emoji, size)
            window = canvas[y:y + size, x:x + size]
            window *= 1 - glyph[..., 3:]
            window += glyph[..., :3]
        return np.rint(canvas.clip(0, 255)).astype(np.uint8)

    def layout(self) -> dict[str, Any]:
        """The ground truth as JSON can hold it; positions and sizes in shares of the side."""
        return {"background": self.background, "objects": [
            {"name": o.emoji.name, "emoji": o.emoji.code, "x": round(o.x, 4), "y": round(o.y, 4),
             "size": round(o.size, 4)} for o in self.objects]}


@dataclass(frozen=True)
class ScenesSource:
    """`train` and `val` scenes of `side` pixels, numbered; raises ValueError for a side below 32."""

    train: int = 4096
    val: int = 512
    side: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side < 32:
            raise ValueError(f"data.scene_size={self.side} is not allowed: at least 32 pixels")

    @property
    def name(self) -> str:
        """`scenes`."""
        return "scenes"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the content."""
        return {"version": 1, "train": self.train, "val": self.val, "side": self.side, "seed": self.seed,
                "jpeg_quality": JPEG_QUALITY}

    @property
    def parts(self) -> int:
        """Number of parts of 512 scenes of one split."""
        return len(self._parts())

    def read(self, part: int) -> Iterator[Sample]:
        """The scenes of one part, by number."""
        split, numbers = self._parts()[part]
        for index in numbers:
            scene = make_scene(self.seed, split, index)
            yield Sample(
                sample_id=f"scenes/{split}/{index:06d}", split=split, image=encode_jpeg(scene.draw(self.side)),
                captions=captions_of(scene, _random(self.seed, split, index, "captions")),
                metadata={"category": "scene", "layout": scene.layout()})

    def _parts(self) -> list[tuple[str, range]]:
        return [(split, range(start, min(start + PART, count)))
                for split, count in (("train", self.train), ("val", self.val)) for start in range(0, count, PART)]


@functools.cache
def scene_emoji(seed: int) -> tuple[Emoji, ...]:
    """The 80 emoji that scenes are made of: training emoji only, things with one or two words, no word twice."""
    candidates = [emoji for emoji in emoji_of_split("train", seed)
                  if emoji.subcategory.startswith(THINGS) and re.fullmatch("[a-z]+( [a-z]+)?", emoji.name)]
    candidates.sort(key=lambda emoji: hashlib.sha256(f"scenes/{seed}/{emoji.code}".encode()).digest())
    chosen: list[Emoji] = []
    words: set[str] = set(BACKGROUNDS)
    for emoji in candidates:
        if words.isdisjoint(emoji.name.split()) and len(chosen) < VOCABULARY:
            chosen.append(emoji)
            words.update(emoji.name.split())
    assert len(chosen) == VOCABULARY, f"only {len(chosen)} emoji are fit for scenes"
    return tuple(chosen)


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Scene number `index` of a split: 1-3 different objects of a third to a half of the side, little overlap."""
    rng = _random(seed, split, index, "layout")
    count = rng.choices(*OBJECTS)[0]
    things = rng.sample(scene_emoji(seed), count)
    background = rng.choice(list(BACKGROUNDS))
    best, least = None, float("inf")
    for _ in range(PLACING_TRIES):
        placed = tuple(_place(emoji, rng) for emoji in things)
        overlap = max((_overlap(a, b) for i, a in enumerate(placed) for b in placed[:i]), default=0.0)
        if overlap < least:
            best, least = placed, overlap
        if least <= LITTLE_OVERLAP:
            break
    assert best is not None
    return Scene(background, best)


def captions_of(scene: Scene, rng: random.Random) -> tuple[str, str, str, str]:
    """Four captions that all name every object: a list, two with the background, and one that says where."""
    names = [placed.emoji.name for placed in scene.objects]

    def listed() -> str:
        return _join(rng.sample(names, len(names)))

    article = "an" if scene.background == "orange" else "a"
    return (listed(), f"{listed()} on {article} {scene.background} background", _whereabouts(scene, rng),
            f"{scene.background} background with {listed()}")


def relation(a: Placed, b: Placed) -> str:
    """Where `a` is, seen from `b`, along the axis on which their centres lie further apart."""
    right, down = (a.x + a.size / 2) - (b.x + b.size / 2), (a.y + a.size / 2) - (b.y + b.size / 2)
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def _whereabouts(scene: Scene, rng: random.Random) -> str:
    first, *others = rng.sample(scene.objects, len(scene.objects))
    if not others:
        return f"the {first.emoji.name} {_position(first)}"
    return f"the {first.emoji.name} " + " and ".join(
        f"{relation(first, other)} the {other.emoji.name}" for other in others)


def _position(placed: Placed) -> str:
    """Where a single object is: the third of the side that its centre lies in, in words."""
    column = ("left", "", "right")[int((placed.x + placed.size / 2) * 3)]
    row = ("top", "", "bottom")[int((placed.y + placed.size / 2) * 3)]
    return "at the " + f"{row} {column}".strip() if row or column else "in the middle"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _place(emoji: Emoji, rng: random.Random) -> Placed:
    size = 1 / 3 + rng.random() / 6
    return Placed(emoji, rng.random() * (1 - size), rng.random() * (1 - size), size)


def _overlap(a: Placed, b: Placed) -> float:
    """Shared area as a share of the smaller square."""
    width = min(a.x + a.size, b.x + b.size) - max(a.x, b.x)
    height = min(a.y + a.size, b.y + b.size) - max(a.y, b.y)
    return max(width, 0.0) * max(height, 0.0) / min(a.size, b.size) ** 2


def _random(seed: int, split: str, index: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{split}/{index}/{purpose}")


@functools.lru_cache(maxsize=4096)
def _glyph(emoji: Emoji, size: int) -> Float32[np.ndarray, "size size 4"]:
    """The emoji scaled to `size` pixels: RGB (0-255) times alpha, and alpha (0-1)."""
    rgba = emoji.pixels().astype(np.float32)
    rgba[..., 3:] /= 255
    rgba[..., :3] *= rgba[..., 3:]
    how = cv2.INTER_AREA if size < rgba.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(rgba, (size, size), interpolation=how)
