"""Decode and augment one image: random resized crop, mirroring, RandAugment, by a generator that the caller keys."""
from __future__ import annotations

import math
import re
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from ashnets.processing import Header, centre_square, decode_image, read_header, resize
from pipelines.config import FeedConfig
from pipelines.feed.rand_augment import rand_augment

_SIDES = re.compile(r"\b(?:left|right)", re.IGNORECASE)


def training_pixels(data: bytes, captions: Sequence[str], feed: FeedConfig, max_pixels: int,
                    random: np.random.Generator) -> UInt8[ndarray, "S S 3"]:
    """Decode, crop at random (`crop_scale` 1: centre square), resize, mirror with probability one half, RandAugment.

    An image with a caption that speaks of left or right is never mirrored. Raises BadSample.
    """
    size = feed.image_size
    header = read_header(data, max_pixels)
    if feed.crop_scale == 1:
        image = centre_square(decode_image(data, size, size, header=header))
    else:
        image = _random_crop(data, header, size, feed.crop_scale, random)
    image = resize(image, size)
    mirror = random.random() < 0.5
    if feed.flip and mirror and not any(_SIDES.search(caption) for caption in captions):
        image = cv2.flip(image, 1)
    return rand_augment(image, feed.rand_augment, feed.rand_augment_magnitude, random)


def crop_box(height: int, width: int, scale: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop: area share in [scale, 1], aspect ratio log-uniform in [3/4, 4/3].

    As torchvision's RandomResizedCrop: after ten misfits the largest centred crop within those ratios.
    """
    for _ in range(10):
        share, skew = random.random(2).tolist()
        area = height * width * (scale + (1 - scale) * share)
        ratio = (4 / 3) ** (2 * skew - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    h, w = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
    return (height - h) // 2, (width - w) // 2, h, w


def _random_crop(data: bytes, header: Header, size: int, scale: float,
                 random: np.random.Generator) -> UInt8[ndarray, "h w 3"]:
    """The crop, decoded no larger than `size` needs: libjpeg scales large images down while it decodes."""
    height, width = header.height, header.width
    top, left, h, w = crop_box(height, width, scale, random)
    needed = min(1.0, max(size / h, size / w))
    image = decode_image(data, math.ceil(height * needed), math.ceil(width * needed), header=header)
    y, x = image.shape[0] / height, image.shape[1] / width
    bottom, right = round((top + h) * y), round((left + w) * x)
    return image[min(round(top * y), bottom - 1):bottom, min(round(left * x), right - 1):right]
