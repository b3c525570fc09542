"""Augmentation: crops inside the image and of the right share, mirroring, and libjpeg's scaled decoding."""
from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from ashnets.processing import resize
from pipelines.config import FeedConfig
from pipelines.feed.augment import crop_box, training_pixels

from .small_stores import encode

MAX = 10**6


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 1), st.integers(0, 2**32))
def test_crops_lie_inside(height: int, width: int, scale: float, seed: int) -> None:
    top, left, h, w = crop_box(height, width, scale, np.random.default_rng(seed))
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0


def test_crops_cover_the_asked_shares_and_ratios() -> None:
    random = np.random.default_rng(0)
    boxes = np.array([crop_box(400, 400, 0.2, random) for _ in range(2000)])
    share, ratio = boxes[:, 2] * boxes[:, 3] / 400**2, boxes[:, 3] / boxes[:, 2]
    assert share.min() == pytest.approx(0.2, abs=0.02) and share.max() > 0.95
    assert ratio.min() == pytest.approx(3 / 4, abs=0.02) and ratio.max() == pytest.approx(4 / 3, abs=0.02)


def halves(mirrored: bool = False) -> np.ndarray:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255
    return image[:, ::-1] if mirrored else image


def pictures(captions: list[str], flip: bool = True, scale: float = 1.0) -> list[np.ndarray]:
    data = encode(halves(), "png")
    feed = FeedConfig(image_size=32, crop_scale=scale, flip=flip)
    return [training_pixels(data, captions, feed, MAX, np.random.default_rng(i)) for i in range(60)]


def test_half_of_the_images_are_mirrored() -> None:
    plain, mirrored = halves(), halves(True)
    results = pictures(["a bright upright cat"])
    count = sum(np.array_equal(r, mirrored) for r in results)
    assert 15 < count < 45 and count + sum(np.array_equal(r, plain) for r in results) == 60


@pytest.mark.parametrize("caption", ["a cat LEFT of a dog", "the rightmost one", "left-handed"])
def test_a_caption_that_names_a_side_forbids_mirroring(caption: str) -> None:
    plain = halves()
    assert all(np.array_equal(r, plain) for r in pictures(["a cat", caption]))
    assert all(np.array_equal(r, plain) for r in pictures(["a cat"], flip=False))


def test_scaled_decoding_keeps_what_the_crop_shows() -> None:
    blocks = np.random.default_rng(0).integers(0, 2, (150, 200, 1), dtype=np.uint8) * 255
    data = encode(blocks.repeat(4, 0).repeat(4, 1).repeat(3, 2))
    full = simplejpeg.decode_jpeg(data)
    feed = FeedConfig(image_size=64, crop_scale=0.1, flip=False)
    for seed in range(10):
        top, left, h, w = crop_box(600, 800, 0.1, np.random.default_rng(seed))
        pixels = training_pixels(data, [], feed, MAX, np.random.default_rng(seed))
        expected = resize(full[top:top + h, left:left + w], 64)
        assert pixels.std() > 0.8 * expected.std()


def test_a_crop_of_a_large_jpeg_is_the_crop_of_its_full_decoding() -> None:
    y, x = np.mgrid[0:600, 0:800]
    image = np.stack([x * 255 // 799, y * 255 // 599, (x + y) * 255 // 1398], -1).astype(np.uint8)
    data = encode(image)
    full = simplejpeg.decode_jpeg(data)
    feed = FeedConfig(image_size=64, crop_scale=0.3, flip=False)
    for seed in range(20):
        random = np.random.default_rng(seed)
        top, left, h, w = crop_box(600, 800, 0.3, np.random.default_rng(seed))
        pixels = training_pixels(data, [], feed, MAX, random)
        expected = resize(full[top:top + h, left:left + w], 64)
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
        assert np.abs(pixels.astype(int) - expected).max() <= 4
