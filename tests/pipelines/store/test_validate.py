"""What is fit for the store: images within our limits, words, and a picture's identity."""
from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.config import DataConfig
from pipelines.sources.record import Rejected, Sample
from pipelines.store.images import BadImage, decode, picture_class
from pipelines.store.validate import to_row


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def png_bomb(side: int) -> bytes:
    """A few bytes whose header claims side x side pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
            + chunk(b"IEND", b""))


def test_a_good_sample_becomes_a_row_with_its_bytes_untouched() -> None:
    image = encoded(picture(), "JPEG")
    sample = Sample("s/1", "train", image, (" a dog ", "", "two"), {"b": 1, "a": "ü"})
    row = to_row(sample, "scenes", "batch", DataConfig())
    assert isinstance(row, dict)
    assert row["image"] == image and row["sha256"] == hashlib.sha256(image).hexdigest()
    assert (row["width"], row["height"]) == (30, 20)
    assert row["captions"] == ["a dog", "two"] and json.loads(row["metadata"]) == {"a": "ü", "b": 1}
    assert (row["sample_id"], row["source"], row["split"], row["batch_id"]) == ("s/1", "scenes", "train", "batch")


@pytest.mark.parametrize("image,captions,reason", [
    (encoded(picture()), (), "empty caption"),
    (encoded(picture()), ("", " \n"), "empty caption"),
    (b"", ("a",), "empty file"),
    (b"<html>404</html>", ("a",), "not an image"),
    (encoded(picture(), "TIFF"), ("a",), "not an image"),
    (encoded(picture(), "JPEG")[:-300], ("a",), "truncated"),
    (encoded(picture())[:900], ("a",), "truncated"),
    (encoded(picture(200, 201)), ("a",), "too many pixels"),
    (png_bomb(12_000), ("a",), "too many pixels"),  # where Pillow only warns
    (png_bomb(50_000), ("a",), "too many pixels"),  # where Pillow refuses, with no OSError
])
def test_each_fault_has_its_reason(image: bytes, captions: tuple[str, ...], reason: str) -> None:
    row = to_row(Sample("s/1", "train", image, captions), "s", "batch", DataConfig(max_pixels=40_000))
    assert isinstance(row, Rejected) and row.reference == "s/1" and row.reason == reason


@pytest.mark.parametrize("name", ["x" * 1025, "a\x1b[2Jb", "a\nb", "a\x9bb"])
def test_an_id_that_is_too_long_or_commands_a_terminal_is_refused(name: str) -> None:
    row = to_row(Sample(name, "train", encoded(picture()), ("a",)), "s", "batch", DataConfig())
    assert isinstance(row, Rejected) and row.reason == "unsafe name" and len(row.reference) <= 1024
    fine = to_row(Sample("s/\u00fc \u3000" + "x" * 1000, "train", encoded(picture()), ("a",)), "s", "b", DataConfig())
    assert isinstance(fine, dict)


@pytest.mark.filterwarnings("error")
def test_the_limit_is_ours_and_is_read_from_the_header() -> None:
    assert decode(encoded(picture(200, 200)), 40_000).shape == (200, 200, 3)
    with pytest.raises(BadImage, match="12000 x 12000 is over data.max_pixels=40000"):
        decode(png_bomb(12_000), 40_000)


def test_a_picture_has_one_class_however_it_is_stored_and_another_from_any_other() -> None:
    pixels = picture()
    same = {picture_class(decode(encoded(pixels, kind), 10**6)) for kind in ("PNG", "BMP", "WEBP")}
    assert same == {picture_class(pixels)} and 0 <= picture_class(pixels) < 2**63
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    assert picture_class(other) not in same
    assert picture_class(pixels.reshape(30, 20, 3)) not in same
    assert picture_class(np.zeros((1, 1, 3), np.uint8)) == int.from_bytes(
        hashlib.sha256(b"(1, 1, 3)\0\0\0").digest()[:8], "big") // 2


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]), st.data())
def test_mutated_bytes_are_decoded_or_refused_and_nothing_else(kind: str, data: st.DataObject) -> None:
    image = bytearray(encoded(picture(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(image), 10_000).dtype == np.uint8
    except BadImage as error:
        assert error.reason in ("not an image", "broken image", "too many pixels", "truncated")
