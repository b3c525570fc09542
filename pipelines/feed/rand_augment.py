"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) with the operations and levels of ALBEF (no torch import).

ALBEF's list leaves out what changes colours (invert, posterise, solarise, saturation), since captions name them, and
nothing in it mirrors, so captions that name a side stay true.
"""
from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageEnhance, ImageOps

Operation = Literal["identity", "autocontrast", "equalize", "brightness", "sharpness", "shear_x", "shear_y",
                    "translate_x", "translate_y", "rotate"]
OPERATIONS: tuple[Operation, ...] = ("identity", "autocontrast", "equalize", "brightness", "sharpness", "shear_x",
                                     "shear_y", "translate_x", "translate_y", "rotate")
MAX_MAGNITUDE = 10
PROBABILITY = 0.5
"""Of applying an operation that was drawn, as in ALBEF's code (the paper always applies it)."""
TRANSLATION = 10 / 256
"""Largest translation as a share of the side: ALBEF's 10 pixels of its 256."""
GREY = (128, 128, 128)
"""What comes in from outside the image."""


def rand_augment(image: UInt8[ndarray, "S S 3"], operations: int, magnitude: int,
                 random: np.random.Generator) -> UInt8[ndarray, "S S 3"]:
    """Draw `operations` of the list, with repeats; apply each with probability one half at `magnitude` (0 to 10)."""
    for _ in range(operations):
        name = OPERATIONS[random.integers(len(OPERATIONS))]
        applied, positive = random.random(2) < (PROBABILITY, 0.5)
        if applied:
            image = np.asarray(apply(Image.fromarray(image), name, level(name, magnitude, positive, len(image))))
    return image


def level(name: Operation, magnitude: int, positive: bool, side: int) -> float:
    """What `magnitude` means to an operation: degrees, pixels, slope, or factor; `positive` gives its sign."""
    share, sign = magnitude / MAX_MAGNITUDE, 1 if positive else -1
    if name in ("brightness", "sharpness"):
        return 0.1 + 1.8 * share  # a factor around 1, without a sign
    largest = {"shear_x": 0.3, "shear_y": 0.3, "translate_x": TRANSLATION * side, "translate_y": TRANSLATION * side,
               "rotate": 30.0}
    return sign * share * largest.get(name, 0.0)


def apply(image: Image.Image, name: Operation, value: float) -> Image.Image:
    """One operation at `level`'s value; the size stays, shears keep the top left corner in its place."""
    match name:
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(value)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(value)
        case "rotate":
            return image.rotate(value, Image.Resampling.BILINEAR, fillcolor=GREY)
        case "shear_x":
            return _affine(image, (1, value, 0, 0, 1, 0))
        case "shear_y":
            return _affine(image, (1, 0, 0, value, 1, 0))
        case "translate_x":
            return _affine(image, (1, 0, -int(value), 0, 1, 0))
        case "translate_y":
            return _affine(image, (1, 0, 0, 0, 1, -int(value)))
        case "identity":
            return image


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """`matrix` leads from the pixels of the result to those of the image."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)
