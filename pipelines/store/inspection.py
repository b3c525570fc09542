"""What a store holds: versions, rows by source and split, refusals by reason, sizes, and samples to look at."""
from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int32, Int64
from numpy import ndarray

from pipelines.errors import UserError
from pipelines.location import Place
from pipelines.store.quarantine import read_quarantine
from pipelines.store.schema import read_row_groups, row_group_sizes
from pipelines.store.table import ImageTextStore

LONGEST = 200
"""Captions of so many words or more are counted together."""
_COLUMNS = ["source", "split", "width", "height", "captions", "batch_id"]


@dataclass(frozen=True)
class Version:
    """One version of the store that brought rows."""

    number: int
    time: str
    batch_id: str
    rows: int
    duplicates: dict[str, int]
    """Copies of pictures that the ingest found (`exact`, `near`, `leaked`)."""


@dataclass(frozen=True)
class Refused:
    """Records of one batch that were refused for one reason."""

    batch_id: str
    reason: str
    count: int
    example: str
    committed: bool
    """Whether the batch is in the store."""


@dataclass(frozen=True)
class Shown:
    """A sample of the contact sheet."""

    sample_id: str
    source: str
    split: str
    image: bytes
    width: int
    height: int
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A store, looked at."""

    path: Place
    version: int
    rows: dict[tuple[str, str], int]
    """Rows by (source, split)."""
    versions: list[Version]
    refused: list[Refused]
    words: Int64[ndarray, " W"]
    """Captions of so many words, up to LONGEST."""
    captions: Int64[ndarray, " C"]
    """Images with so many captions, up to LONGEST."""
    widths: Int32[ndarray, " N"]
    heights: Int32[ndarray, " N"]
    shown: list[Shown]


def inspect(path: str | Place, samples: int = 48, seed: int = 0) -> Inspection:
    """Read the newest version of the store at `path`, whole, in bounded batches; no image but the shown ones.

    Raises UserError where there is no store.
    """
    store = ImageTextStore(path)
    if not store.exists():
        raise UserError(f"data.store={path}: there is no image-text store here: name one that is, or fill it first "
                        "(jobs/ingest.py)")
    version = store.version()
    rows: Counter[tuple[str, str]] = Counter()
    batches: Counter[str] = Counter()
    words, captions = np.zeros((2, LONGEST + 1), np.int64)
    kinds: dict[tuple[str, str], int] = {}
    widths, heights, kind_of = [], [], []
    for batch in store.iter_batches(_COLUMNS, version=version, rows=4096):
        pairs = list(zip(batch["source"].to_pylist(), batch["split"].to_pylist(), strict=True))
        rows.update(pairs)
        kind_of.append(np.array([kinds.setdefault(pair, len(kinds)) for pair in pairs], np.int32))
        batches.update(batch["batch_id"].to_pylist())
        texts = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(batch["captions"].flatten()))
        words += _counts(pc.list_value_length(texts).to_numpy())
        captions += _counts(pc.list_value_length(batch["captions"]).to_numpy())
        widths.append(batch["width"].to_numpy())
        heights.append(batch["height"].to_numpy())
    return Inspection(store.path, version, dict(sorted(rows.items())), _versions(store, version, batches),
                      _refused(store), words, captions, np.concatenate(widths), np.concatenate(heights),
                      _read(store, version, _draw(np.concatenate(kind_of), samples, seed)))


def _counts(numbers: ndarray) -> Int64[ndarray, " W"]:
    return np.bincount(np.minimum(numbers, LONGEST), minlength=LONGEST + 1)


def _versions(store: ImageTextStore, version: int, rows: Counter[str]) -> list[Version]:
    """The batches that the log names, and those of stores from before it did."""
    entries: dict[str, dict[str, Any]] = store.batches()
    found = [Version(int(entry["version"]), f"{datetime.fromtimestamp(entry['timestamp'] / 1000, UTC):%F %R} UTC",
                     batch_id, rows.get(batch_id, 0), json.loads(entry.get("duplicates", "{}")))
             for batch_id, entry in entries.items() if int(entry["version"]) <= version]
    unnamed = [Version(-1, "", batch_id, count, {}) for batch_id, count in rows.items() if batch_id not in entries]
    return [*unnamed, *found]


def _refused(store: ImageTextStore) -> list[Refused]:
    table = read_quarantine(store.path)
    groups = table.group_by(["batch_id", "reason"]).aggregate([("reference", "count"), ("reference", "min")])
    found = [Refused(row["batch_id"], row["reason"], row["reference_count"], row["reference_min"],
                     store.has_batch(row["batch_id"])) for row in groups.to_pylist()]
    return sorted(found, key=lambda one: (one.batch_id, -one.count, one.reason))


def _draw(kind_of: Int32[ndarray, " N"], samples: int, seed: int) -> list[int]:
    """Rows to show: the same number of every source and split, as far as they have so many; in the store's order."""
    order = np.random.default_rng(seed).permutation(len(kind_of))
    of_kind = [order[kind_of[order] == kind] for kind in range(kind_of.max() + 1)]
    turns = np.concatenate([np.arange(len(rows)) for rows in of_kind])
    drawn: list[int] = np.concatenate(of_kind)[np.argsort(turns, kind="stable")[:samples]].tolist()
    return sorted(drawn)


def _read(store: ImageTextStore, version: int, wanted: list[int]) -> list[Shown]:
    """The rows of these numbers, counted over the whole version; only their row groups are read."""
    shown, start = [], 0
    columns = ["sample_id", "source", "split", "image", "width", "height", "captions"]
    for file in store.files(version):
        for group, size in enumerate(row_group_sizes(file)):
            inside = [row - start for row in wanted if start <= row < start + size]
            start += size
            if inside:
                shown += [Shown(**{**row, "captions": tuple(row["captions"])})
                          for row in read_row_groups(file, [group], columns).take(inside).to_pylist()]
    return sorted(shown, key=lambda one: (one.source, one.split, one.sample_id))


def told(found: Inspection) -> list[str]:
    """The inspection in lines for a person."""
    lines = [f"{found.path}: version {found.version}, {sum(found.rows.values()):,} images"]
    lines += [f"  {count:>10,} {source}, {split}" for (source, split), count in found.rows.items()]
    lines.append("versions:")
    for one in found.versions:
        copies = "".join(f", {count:,} {name} copies" for name, count in one.duplicates.items() if count)
        number = f"v{one.number}" if one.number >= 0 else ""
        lines.append(f"  {number:>4} {one.time:<20} {one.batch_id}: {one.rows:,} rows{copies}")
    lines.append("quarantine:" if found.refused else "quarantine: empty")
    lines += [f"  {one.count:>10,} {one.reason} (such as {one.example}; batch {one.batch_id}"
              f"{'' if one.committed else ', not in the store'})" for one in found.refused]
    lengths = np.repeat(np.arange(LONGEST + 1), found.words)
    shorter = np.minimum(found.widths, found.heights)
    for name, values in (("words of a caption", lengths), ("shorter side of an image, pixels", shorter)):
        low, middle, high = np.quantile(values, [0, .5, 1], method="nearest").astype(int).tolist()
        lines.append(f"{name}: {low} to {high}, median {middle}")
    return lines
