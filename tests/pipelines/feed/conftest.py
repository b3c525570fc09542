"""Small grouped stores for the feed's tests, and plans over them."""
from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from PIL import Image

from pipelines.config import FeedConfig
from pipelines.feed.plan import FeedPlan
from pipelines.store.schema import write_parquet

GROUP_SCHEMA = pa.schema([
    ("group_id", pa.int64()), ("sample_ids", pa.list_(pa.string())), ("images", pa.list_(pa.binary())),
    ("captions", pa.list_(pa.list_(pa.string()))), ("image_classes", pa.list_(pa.int64())),
    ("real", pa.list_(pa.bool_()))])
WORDS = ("red", "blue", "running", "unbelievable", "cat", "dog", "left", "umbrella", "smiling", "face")


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
        write_parquet(pa.Table.from_pylist(part, schema=GROUP_SCHEMA), path / name, row_group)
        sizes = [len(part[i:i + row_group]) for i in range(0, len(part), row_group)]
        manifest_files.append({"name": name, "row_groups": sizes})
    (path / "groups.json").write_text(json.dumps({"size": size, "groups": len(rows), "files": manifest_files}))
    return path


@dataclass(frozen=True)
class SmallStore:
    """A grouped store of 37 groups of 3 in uneven row groups, with the rows that it was written from."""

    path: Path
    rows: list[dict]


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """37 groups of 3 samples in two files."""
    rows = make_groups(37, 3, 24)
    return SmallStore(write_groups(tmp_path_factory.mktemp("groups") / "store", rows), rows)


MakePlan = Callable[..., FeedPlan]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer of a few words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", *WORDS[:2], "run", "##ning", "un",
              "##believ", "##able", *WORDS[4:]]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def make_plan(small_store: SmallStore, tokenizer_file: Path) -> MakePlan:
    """Plans over the small store (or another); keywords override fields of the plan or of its FeedConfig."""
    def make(path: Path | None = None, **changes: object) -> FeedPlan:
        feed = {"window": 3, "image_size": 16, "captions": 2, "crop_scale": 0.5}
        plan = {"seed": 7, "max_tokens": 8, "mask_rate": 0.3, "whole_word": False, "groups_per_atom": 2,
                "atoms_per_step": 3}
        for name, value in changes.items():
            (feed if name in FeedConfig.__dataclass_fields__ else plan)[name] = value
        return FeedPlan(groups_path=str(path or small_store.path), feed=FeedConfig(**feed),
                        tokenizer=str(tokenizer_file), **plan)
    return make
