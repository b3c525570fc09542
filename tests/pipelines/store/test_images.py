"""Images at ingest: bombs cost no memory, EXIF and transparency are undone, shrinking and encoding keep the picture."""
from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.config import DataConfig
from pipelines.sources.record import Rejected, Sample
from pipelines.store.images import decode, perceptual_hash
from pipelines.store.validate import to_row

REPOSITORY = Path(__file__).resolve().parents[3]
SIDE = 8_000


def smooth(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def saved(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def bomb(kind: str) -> bytes:
    """A few bytes (JPEG: some kilobytes) that decode to 64 million pixels."""
    if kind == "PNG":
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
        packer = zlib.compressobj(9)
        data = b"".join(packer.compress(bytes(1 + 3 * SIDE)) for _ in range(SIDE)) + packer.flush()
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    image, out = Image.new("L" if kind != "WEBP" else "RGB", (SIDE, SIDE)), io.BytesIO()
    if kind == "BMP":  # run-length encoded: two bytes for 255 pixels
        rows = (b"\xff\0" * (SIDE // 255) + bytes([SIDE % 255, 0]) + b"\0\0") * SIDE + b"\0\1"
        head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, len(rows), 0, 0, 256, 0)
        return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + head + bytes(1024) + rows
    image.save(out, kind, **({"method": 0, "quality": 1} if kind == "WEBP" else {}))
    return out.getvalue()


PROGRAM = """
import sys
from pathlib import Path
from pipelines.config import DataConfig
from pipelines.sources.record import Sample
from pipelines.store.validate import to_row
def peak():
    # Not ru_maxrss, which begins with what the parent process held.
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
data = DataConfig(max_pixels=int(sys.argv[3]))
fine = Path(sys.argv[1]).read_bytes()
assert isinstance(to_row(Sample("s/1", "train", fine, ("a",)), "s", "b", data), dict)
image = Path(sys.argv[2]).read_bytes()
captions = ("x" * 10**7,) if sys.argv[4] == "long" else ("a",)
before = peak()
row = to_row(Sample("s/1", "train", image, captions), "s", "b", data)
print(peak() - before, row["width"] if isinstance(row, dict) else row.reason)
"""


def growth(folder: Path, image: bytes, max_pixels: int, captions: str = "short") -> tuple[int, str]:
    """Bytes by which a process grows that makes a row of the image, and what becomes of it."""
    (folder / "fine").write_bytes(saved(smooth(30, 30), "PNG"))
    (folder / "image").write_bytes(image)
    answer = subprocess.run([sys.executable, "-c", PROGRAM, "fine", "image", str(max_pixels), captions], cwd=folder,
                            env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True, capture_output=True,
                            check=True)
    grown, _, end = answer.stdout.strip().partition(" ")
    return int(grown), end


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_a_bomb_is_refused_before_it_takes_memory(kind: str, tmp_path: Path) -> None:
    limit = 1_000_000
    image = bomb(kind)
    assert Image.open(io.BytesIO(image)).size == (SIDE, SIDE) and len(image) < 3 * SIDE * SIDE / 50
    grown, end = growth(tmp_path, image, limit)
    assert end == "too many pixels" and grown < 3 * limit + 64_000_000


def test_the_measure_sees_a_bomb_that_is_let_through(tmp_path: Path) -> None:
    grown, end = growth(tmp_path, bomb("GIF"), SIDE * SIDE)
    assert end == str(SIDE) and grown > 2 * SIDE * SIDE


def test_a_caption_of_ten_million_characters_is_refused(tmp_path: Path) -> None:
    grown, end = growth(tmp_path, saved(smooth(30, 30), "PNG"), 10**6, "long")
    assert end == "caption too long" and grown < 64_000_000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    image = Image.fromarray(smooth(40, 60))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue()))))
    assert (decode(out.getvalue(), 10**6) == upright).all()
    row = to_row(Sample("s/1", "train", out.getvalue(), ("a",)), "s", "b", DataConfig(encode="jpeg", quality=95))
    assert isinstance(row, dict) and (row["height"], row["width"]) == upright.shape[:2]
    stored = Image.open(io.BytesIO(row["image"]))
    assert stored.getexif().get(0x0112, 1) == 1 and np.abs(np.asarray(stored).astype(int) - upright).mean() < 8
    kept = to_row(Sample("s/1", "train", out.getvalue(), ("a",)), "s", "b", DataConfig())
    assert isinstance(kept, dict) and kept["image"] == out.getvalue()
    assert (kept["height"], kept["width"], kept["image_class"]) == (row["height"], row["width"], row["image_class"])


def test_transparency_is_white_in_the_pixels_that_are_compared_and_encoded() -> None:
    clear = np.zeros((20, 20, 4), np.uint8)
    assert (decode(saved(clear, "PNG"), 10**6) == 255).all()


@pytest.mark.parametrize("height,width,size", [(400, 600, (100, 150)), (600, 400, (150, 100)), (100, 900, (100, 900)),
                                               (90, 40, (90, 40))])
def test_shrinking_makes_the_shorter_side_as_long_as_asked_and_never_longer(height: int, width: int,
                                                                            size: tuple[int, int]) -> None:
    image = saved(smooth(height, width), "PNG")
    row = to_row(Sample("s/1", "train", image, ("a",)), "s", "b", DataConfig(short_side=100))
    assert isinstance(row, dict) and (row["height"], row["width"]) == size
    metadata = json.loads(row["metadata"])
    assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
    if size == (height, width):
        assert row["image"] == image and "original_sha256" not in metadata
    else:
        assert metadata["original_sha256"] == hashlib.sha256(image).hexdigest()
        stored = Image.open(io.BytesIO(row["image"]))
        assert stored.format == "JPEG" and stored.size == size[::-1]
        expected = cv2.resize(smooth(height, width), size[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(np.asarray(stored).astype(int) - expected).mean() < 4


@pytest.mark.parametrize("data", [DataConfig(encode="jpeg"), DataConfig(short_side=16)])
@pytest.mark.parametrize("shape", [(17, 70_000), (70_000, 17)])
def test_a_side_that_no_jpeg_can_have_is_refused_where_one_is_made(shape: tuple[int, int], data: DataConfig) -> None:
    image = saved(np.zeros((*shape, 3), np.uint8), "PNG")
    row = to_row(Sample("s/1", "train", image, ("a",)), "s", "b", data)
    assert isinstance(row, Rejected) and row.reason == "too many pixels" and "65500" in row.detail
    assert isinstance(to_row(Sample("s/1", "train", image, ("a",)), "s", "b", DataConfig()), dict)


def test_a_picture_keeps_its_perceptual_hash_when_it_is_shrunk_or_encoded_anew_and_others_differ() -> None:
    pixels = smooth(480, 640)
    own = perceptual_hash(pixels)
    for other in (decode(saved(pixels, "JPEG", quality=40), 10**6), cv2.resize(pixels, (200, 150))):
        assert (own ^ perceptual_hash(other)).bit_count() <= 4
    assert (own ^ perceptual_hash(np.ascontiguousarray(pixels[:, ::-1]))).bit_count() > 10
