"""Bring together what a file scatters: all texts of one key, for more keys than fit memory as Python objects.

Everything is kept in Arrow, about as large as the texts themselves, and sorted once.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter

import pyarrow as pa

from pipelines.sources.files import Refused
from pipelines.sources.record import Rejected

CHUNK = 65_536
_SCHEMA = pa.schema([("key", pa.large_string()), ("number", pa.int64()), ("kind", pa.string()),
                     ("text", pa.large_string())])

Fact = tuple[str, str, str]
"""(key, kind, text)."""


def gather(facts: Iterable[Fact]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Each key once, in the order of the keys, with its texts by kind in the order in which they came."""
    chunks, numbered = [], enumerate(facts)
    while chunk := list(islice(numbered, CHUNK)):
        numbers, columns = zip(*chunk, strict=True)
        keys, kinds, texts = zip(*columns, strict=True)
        chunks.append(pa.record_batch([pa.array(keys, pa.large_string()), pa.array(numbers), pa.array(kinds),
                                       pa.array(texts, pa.large_string())], schema=_SCHEMA))
    table = pa.Table.from_batches(chunks, _SCHEMA).sort_by([("key", "ascending"), ("number", "ascending")])
    for key, rows in groupby(_rows(table), itemgetter(0)):
        by_kind: defaultdict[str, list[str]] = defaultdict(list)
        for _, kind, text in rows:
            by_kind[kind].append(text)
        yield key, by_kind


def bad(reference: str, error: Refused) -> Fact:
    """A record that is no good as a fact, so that it takes its place in the order."""
    return reference, "bad", f"{error.reason}\n{error.detail}"


def rejections(reference: str, by_kind: dict[str, list[str]]) -> Iterator[Rejected]:
    """What `bad` put among the facts of one key."""
    for text in by_kind.get("bad", ()):
        yield Rejected(reference, *text.split("\n", 1))


def _rows(table: pa.Table) -> Iterator[Fact]:
    for batch in table.to_batches(max_chunksize=CHUNK):
        yield from zip(*(batch[name].to_pylist() for name in ("key", "kind", "text")), strict=True)
