"""The index of a data set whose captions stand apart from its images: rows of names and texts, read lazily.

One Ray task streams the annotations and leaves the rows in Ray's object store, which spills to disk, in tables that
the driver never sees; each part of the ingest takes its share and opens its images.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import ray

from pipelines.sources.config import SourceConfig
from pipelines.sources.files import Refused, read_image
from pipelines.sources.record import Rejected, Sample

PART = 512
TABLE = 32 * PART
"""Rows of a table: large enough for the shared memory; smaller objects would be sent to the driver."""

_STRINGS = pa.list_(pa.string())
_SCHEMA = pa.schema([("sample_id", pa.string()), ("split", pa.string()), ("images", _STRINGS), ("texts", _STRINGS),
                     ("metadata", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Entry:
    """One image (or pair) of a data set: where its file may lie, and its texts."""

    sample_id: str
    split: str
    images: tuple[str, ...]
    """Names below source.images, of which the first that exists counts (NLVR2: left and right)."""
    texts: tuple[str, ...]
    """Captions, or for a task table its annotations as JSON."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


Dropped = Counter[str]
"""How many images or records were left out on purpose, by reason."""
Importer = Callable[[SourceConfig, Dropped], Iterator[Entry | Rejected]]
"""What a format offers: a stream of entries, in the same order always; it counts what it leaves out."""


@dataclass(frozen=True)
class IndexedSource:
    """A source (see record.py) over the tables of an index."""

    name: str
    settings: Mapping[str, Any]
    images: str
    """Folder of the images."""
    tables: tuple[Any, ...]
    """References to the tables in Ray's object store, of TABLE rows each but for the last."""
    rows: int
    pairs: bool = False
    """Whether an entry's names are two images, not two names of one."""

    @property
    def parts(self) -> int:
        """Number of parts of 512 rows."""
        return -(-self.rows // PART)

    def entries(self, part: int) -> Iterator[Entry | Rejected]:
        """The rows of one part."""
        table = ray.get(self.tables[part * PART // TABLE]).slice(part * PART % TABLE, PART)
        for row in table.to_pylist():
            yield _entry(row)

    def read(self, part: int) -> Iterator[Sample | Rejected]:
        """The samples of one part, with their images."""
        for entry in self.entries(part):
            yield entry if isinstance(entry, Rejected) else with_image(entry, self.images)


def with_image(entry: Entry, folder: str) -> Sample | Rejected:
    """The sample of an entry with one image; one that has no captions is refused before its image is read."""
    if not entry.texts:
        return Rejected(entry.sample_id, "empty caption", "it has no caption at all")
    try:
        image = read_image(folder, entry.images)
    except Refused as error:
        return Rejected(entry.sample_id, error.reason, error.detail)
    return Sample(entry.sample_id, entry.split, image, entry.texts, entry.metadata)


def build_index(importer: Importer, config: SourceConfig, settings: Mapping[str, Any]) -> tuple[IndexedSource, Dropped]:
    """Index a data set; Ray must be connected. Also returns what was left out on purpose.

    Raises what the importer raises: UserError for a file that cannot be read.
    """
    references = list(_index.options(num_returns="streaming").remote(importer, config))
    try:
        rows, dropped = ray.get(references.pop())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return IndexedSource(config.source_name, settings, config.images, tuple(references), rows,
                         pairs=config.format == "nlvr2"), dropped


@ray.remote(max_retries=3)
def _index(importer: Importer, config: SourceConfig) -> Iterator[pa.Table | tuple[int, Dropped]]:
    """Yield the tables, then the number of rows and what was dropped."""
    dropped, rows = Dropped(), 0
    entries = map(_row, importer(config, dropped))
    while chunk := list(islice(entries, TABLE)):
        rows += len(chunk)
        yield pa.Table.from_pylist(chunk, _SCHEMA)
    yield rows, dropped


def _row(entry: Entry | Rejected) -> dict[str, Any]:
    if isinstance(entry, Rejected):
        return {"sample_id": entry.reference, "reason": entry.reason, "detail": entry.detail}
    return {"sample_id": entry.sample_id, "split": entry.split, "images": entry.images, "texts": entry.texts,
            "metadata": json.dumps(entry.metadata)}


def _entry(row: dict[str, Any]) -> Entry | Rejected:
    if row["reason"] is not None:
        return Rejected(row["sample_id"], row["reason"], row["detail"])
    return Entry(row["sample_id"], row["split"], tuple(row["images"]), tuple(row["texts"]),
                 json.loads(row["metadata"]))
