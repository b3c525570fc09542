"""Copy a store's images into the order of the groups: two steps of tasks over files, each in bounded memory.

Spreading: a task reads some parts of the store and appends their images to one spill file, CHUNK_BYTES at a time, each
chunk in the order of the groups. Gathering: a task writes one part file of the grouped store, from stretches of the
spill files. Both are pure functions of their arguments and of files, so neither the number of CPUs nor a task that is
run twice changes the result.
"""
from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from pipelines.errors import UserError
from pipelines.grouping.block_tasks import run
from pipelines.grouping.materialise import GROUP_SCHEMA, Progress
from pipelines.grouping.samples import Samples
from pipelines.store.parts import Part
from pipelines.store.schema import write_parquet
from pipelines.store.table import file_batches

FILE_BYTES = 64 * 2**20
"""A part file ends behind the row group that brings it to this size."""
SPREAD_BYTES = 128 * 2**20
"""What one task of the first step reads, about, unless there were more than MAX_SPILL_FILES tasks."""
MAX_SPILL_FILES = 256
"""So many files at most are opened for a part file."""
CHUNK_BYTES = 64 * 2**20
"""Images that a task of the first step holds."""
MAX_ARRAY_BYTES = 2**31 - 1
"""What Arrow's plain binary column holds."""


@dataclass(frozen=True)
class Copies:
    """Where the image of every sample lies, in the order of `Samples.table`."""

    file: Int64[np.ndarray, " N"]
    start: Int64[np.ndarray, " N"]
    length: Int64[np.ndarray, " N"]


def write_parts(samples: Samples, groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"], folder: Path,
                row_group: int, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Write the groups' part files into `folder`, and return their lines of the manifest.

    Raises ValueError where the store changed since `samples` was read, and OSError where the disk is full.
    """
    spill = folder / "spill"
    spill.mkdir()
    copies = _spread_all(samples, groups, real, spill, progress)
    cuts = _cuts(samples, groups, copies, row_group)
    blocks = [_block(samples, groups[first:end], real[first:end], copies, number, first)
              for number, (first, end) in enumerate(cuts)]
    sizes = run(partial(gather, spill=spill, folder=folder, row_group=row_group), blocks, folder, "writing groups",
                progress)
    shutil.rmtree(spill)
    return [{"name": part_name(number), "bytes": int(size[0]),
             "row_groups": [min(row_group, end - start) for start in range(first, end, row_group)]}
            for number, ((first, end), size) in enumerate(zip(cuts, sizes, strict=True))]


def part_name(number: int) -> str:
    """The name of a part file."""
    return f"part-{number:05d}.parquet"


def _spread_all(samples: Samples, groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"], spill: Path,
                progress: Progress | None) -> Copies:
    """Copy every image to the spill files."""
    place = np.zeros(len(samples), np.int64)
    place[groups[real]] = np.flatnonzero(real)
    parts = [part for part, rows in samples.parts if rows]
    ends = np.cumsum([0] + [rows for _, rows in samples.parts if rows])
    count = max(1, min(MAX_SPILL_FILES, len(parts), samples.stored_bytes // SPREAD_BYTES))
    shares = [share.tolist() for share in np.array_split(np.arange(len(parts)), count)]
    read = [samples.row_of_reading[ends[share[0]]:ends[share[-1] + 1]] for share in shares]
    blocks = [pa.table({"number": np.full(len(rows), number), "place": place[rows],
                        "sample_id": samples.table["sample_id"].take(pa.array(rows))})
              for number, rows in enumerate(read)]
    changed = f"{samples.store.path}: version {samples.version} changed while it was grouped: start again"
    task = partial(spread, parts=[[parts[number] for number in share] for share in shares], split=samples.split,
                   spill=spill, changed=changed)
    copies = Copies(*np.zeros((3, len(samples)), np.int64))
    for number, found in enumerate(run(task, blocks, spill, "copying images", progress)):
        rows = read[number]
        copies.file[rows] = number
        copies.start[rows], copies.length[rows] = found.reshape(2, -1)
    return copies


def spread(rows: pa.Table, parts: Sequence[Sequence[Part]], split: str, spill: Path, changed: str,
           ) -> Int64[np.ndarray, " 2n"]:
    """Copy the images of some parts to one spill file; where each starts there, and then the length of each.

    `rows` says which samples the parts hold and where groups want them. ValueError(`changed`) where they hold others.
    """
    number = rows["number"][0].as_py()
    place, ids = rows["place"].to_numpy(), rows["sample_id"].combine_chunks()
    starts, lengths = np.zeros((2, len(rows)), np.int64)
    temporary = spill / f"{number}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            for first, images in _chunks(parts[number], ids, split, changed):
                for n in np.argsort(place[first:first + len(images)]).tolist():
                    starts[first + n], lengths[first + n] = file.tell(), len(images[n])
                    file.write(images[n])
        temporary.replace(spill / str(number))
    finally:
        temporary.unlink(missing_ok=True)
    return np.concatenate([starts, lengths])


def _chunks(parts: Sequence[Part], ids: pa.Array, split: str, changed: str) -> Iterator[tuple[int, list[bytes]]]:
    """The images of the parts, about CHUNK_BYTES at a time, each chunk with the number of its first row."""
    images: list[bytes] = []
    first, held = 0, 0
    for part in parts:
        for batch in file_batches(part.file, ["sample_id", "image"], split, part.row_groups):
            seen = first + len(images)
            if not batch["sample_id"].equals(ids[seen:seen + len(batch)]):
                raise ValueError(changed)
            images += batch["image"].to_pylist()
            held += batch["image"].nbytes
            if held >= CHUNK_BYTES:
                yield first, images
                first, images, held = first + len(images), [], 0
    if first + len(images) != len(ids):
        raise ValueError(changed)
    yield first, images


def _cuts(samples: Samples, groups: Int64[np.ndarray, "n G"], copies: Copies, row_group: int) -> list[tuple[int, int]]:
    """The first group of every part file, and the one behind its last; a file holds whole row groups."""
    words = samples.table.nbytes // len(samples)
    sizes = (copies.length[groups] + words).sum(axis=1)
    cuts, held = [0], 0
    for start in range(0, len(groups), row_group):
        held += int(sizes[start:start + row_group].sum())
        if held >= FILE_BYTES or start + row_group >= len(groups):
            cuts.append(min(start + row_group, len(groups)))
            held = 0
    return list(pairwise(cuts))


def _block(samples: Samples, groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"], copies: Copies,
           number: int, first_id: int) -> pa.Table:
    """The rows of a part file, which say where their images lie; groups are numbered from `first_id`."""
    rows = groups.ravel()
    members = samples.table.take(pa.array(rows)).combine_chunks()
    lists = partial(_lists, size=groups.shape[1])
    return pa.table({
        "number": np.full(len(groups), number),
        "group_id": np.arange(first_id, first_id + len(groups)),
        "sample_ids": lists(members["sample_id"]),
        "captions": lists(members["captions"]),
        "image_classes": lists(members["image_class"]),
        "real": lists(pa.array(real.ravel())),
        "file": lists(pa.array(copies.file[rows])),
        "start": lists(pa.array(copies.start[rows])),
        "length": lists(pa.array(copies.length[rows])),
    })


def gather(rows: pa.Table, spill: Path, folder: Path, row_group: int) -> Int64[np.ndarray, " 1"]:
    """Write one part file from its `rows` (see `_block`); its size in bytes."""
    file, start, length = (rows[name].combine_chunks().flatten().to_numpy() for name in ("file", "start", "length"))
    images = _images(file, start, length, spill)
    whole = rows.append_column("images", _lists(images, len(images) // len(rows)))
    written = spill / part_name(rows["number"][0].as_py())  # there, since a task that is killed leaves its half behind
    size = write_parquet(whole.select(GROUP_SCHEMA.names).cast(GROUP_SCHEMA), written, row_group)
    written.replace(folder / written.name)
    return np.array([size])


def _images(file: Int64[np.ndarray, " n"], start: Int64[np.ndarray, " n"], length: Int64[np.ndarray, " n"], spill: Path,
            ) -> pa.Array:
    """The images that lie there, read file by file in the order of each."""
    ends = np.concatenate([[0], np.cumsum(length)])
    if ends[-1] > MAX_ARRAY_BYTES:
        raise UserError("groups.row_group: the images of one row group take more than 2 GiB: make it smaller")
    content = np.empty(ends[-1], np.uint8)
    for source in np.unique(file):
        with open(spill / str(source), "rb") as stream:
            mine = np.flatnonzero(file == source)
            for n in mine[np.argsort(start[mine])].tolist():
                if os.preadv(stream.fileno(), [content[ends[n]:ends[n + 1]].data], start[n]) != length[n]:
                    raise OSError(f"{stream.name} is shorter than it was written")
    return pa.Array.from_buffers(pa.binary(), len(file), [
        None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(content)])


def _lists(values: pa.Array | pa.ChunkedArray, size: int) -> pa.Array:
    """A list column whose every list holds `size` of the values."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pa.ListArray.from_arrays(pa.array(np.arange(len(whole) // size + 1) * size, pa.int32()), whole)
