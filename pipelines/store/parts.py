"""The store's files cut into parts, which tasks read: some row groups of one file each (no torch or ray import)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.store.schema import row_group_sizes

PART_ROWS = 1024


@dataclass(frozen=True)
class Part:
    """Row groups of one file of the store; `number` counts the parts in the order in which the store is read."""

    number: int
    file: str
    row_groups: tuple[int, ...]
    rows: int


def parts_of(files: Sequence[str]) -> list[Part]:
    """The store's files cut at row groups into parts of about PART_ROWS rows."""
    parts: list[Part] = []
    for file in files:
        held: list[int] = []
        sizes = row_group_sizes(file)
        for group in range(len(sizes)):
            held.append(group)
            rows = sum(sizes[i] for i in held)
            if rows >= PART_ROWS or group == len(sizes) - 1:
                parts.append(Part(len(parts), file, tuple(held), rows))
                held = []
    return parts
