"""Small grouped stores, tokenizers and comparisons for the feed's tests."""
from __future__ import annotations

import io
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ashnets.batch import MicroBatch
from pipelines.grouping.materialise import FORMAT, GROUP_SCHEMA
from pipelines.store.schema import write_parquet

WORDS = ("red", "blue", "running", "unbelievable", "cat", "dog", "left", "umbrella", "smiling", "face")
VOCABULARY = 19


def encode(pixels: np.ndarray, kind: str = "jpeg") -> bytes:
    """An image as JPEG or PNG."""
    if kind == "jpeg":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_groups(groups: int, size: int, side: int, seed: int = 0) -> list[dict]:
    """Rows of a grouped store: noise images, two captions a sample; the very last member is a padding copy."""
    random = np.random.default_rng(seed)
    rows = []
    for g in range(groups):
        ids = [f"test/{g:05d}-{m}" for m in range(size)]
        images = [encode(random.integers(0, 256, (side, side + 8 * (m % 2), 3), dtype=np.uint8),
                         "png" if (g + m) % 5 == 0 else "jpeg") for m in range(size)]
        captions = [[" ".join(random.choice(WORDS, 5)) for _ in range(2)] for _ in ids]
        rows.append({"group_id": 1000 + g, "sample_ids": ids, "images": images, "captions": captions,
                     "image_classes": [g * size + m for m in range(size)], "real": [True] * size})
    rows[-1]["real"][-1] = False
    return rows


def write_groups(path: Path, rows: list[dict], row_group: int = 4, files: int = 2) -> Path:
    """A grouped store of the rows, in the manifest's format."""
    size, manifest_files = len(rows[0]["sample_ids"]), []
    per_file = -(-len(rows) // files)
    for f in range(files):
        part = rows[f * per_file:(f + 1) * per_file]
        name = f"part-{f:05d}.parquet"
        count = write_parquet(pa.Table.from_pylist(part, schema=GROUP_SCHEMA), path / name, row_group)
        sizes = [len(part[i:i + row_group]) for i in range(0, len(part), row_group)]
        manifest_files.append({"name": name, "bytes": count, "row_groups": sizes})
    manifest = {"format": FORMAT, "size": size, "groups": len(rows), "files": manifest_files}
    (path / "groups.json").write_text(json.dumps(manifest))
    return path


def write_tokenizer(path: Path) -> Path:
    """A WordPiece tokenizer of VOCABULARY pieces that knows WORDS."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", *WORDS[:2], "run", "##ning", "un",
              "##believ", "##able", *WORDS[4:]]
    assert len(pieces) == VOCABULARY
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path))
    return path


@dataclass(frozen=True)
class SmallStore:
    """A grouped store of 37 groups of 3 in uneven row groups, with the rows that it was written from."""

    path: Path
    rows: list[dict]


def assert_equal(left: list[MicroBatch], right: list[MicroBatch]) -> None:
    """Both hold the same micro-batches, byte for byte."""
    assert [batch.position for batch in left] == [batch.position for batch in right]
    for a, b in zip(left, right, strict=True):
        for field in fields(MicroBatch):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, field.name
