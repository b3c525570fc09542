"""Attempts at an ingest: who is writing into a store or task table now, and what killed ones have left behind.

In a folder a running attempt holds a file lock, which its system takes away with its process, however that ends: a
Parquet file of an attempt without that lock, which is not committed, is of no use to anybody. Object
storage has no locks: there an attempt removes its own files when it ends, and what killed ones left goes when it is
older than any attempt could be.
"""
from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from filelock import FileLock, Timeout

from pipelines.location import Address, Place

LOCKS = "_ingests"
"""The folder of the locks inside a store's; Delta leaves alone what begins with '_'."""
LONGEST_S = 7 * 24 * 3600
"""An attempt in object storage that takes longer than a week loses its files."""
_WRITTEN = re.compile(r"\.?.+-\d{6}-\d{4}-(?P<attempt>[0-9a-f]{8})(-v\d+)?\.parquet(\.[0-9a-f]{8}\.tmp)?")


class Store(Protocol):
    """What attempts need to know of a place that they write to."""

    @property
    def path(self) -> Place:
        """The folder that files are written into."""

    def exists(self) -> bool:
        """Whether anything is committed there."""

    def files(self) -> list[str]:
        """Paths or addresses of what is committed, in all that is current."""


def file_name(batch_id: str, part: int, piece: int, attempt: str) -> str:
    """The name of one file that an attempt writes; one that stands in for it has `-v<number>` before the ending."""
    return f"{batch_id}-{part:06d}-{piece:04d}-{attempt}.parquet"


@contextmanager
def attempt_at(store: Store) -> Iterator[str]:
    """A new attempt's name, for the time in which its files may lie in the store without being committed."""
    attempt = uuid.uuid4().hex[:8]
    if isinstance(store.path, Address):
        remove_old(store, store.path, time.time() - LONGEST_S)
        try:
            yield attempt
        finally:
            remove_old(store, store.path, time.time() - LONGEST_S, attempt)
        return
    mine = _lock(store.path, attempt)
    with alone(store.path):
        remove_orphans(store, store.path)
        mine.acquire()
    try:
        yield attempt
    finally:
        mine.release()
        with alone(store.path):
            remove_orphans(store, store.path)


def alone(folder: Path) -> FileLock:
    """A lock that only one process holds at a time: from looking for orphans to their end."""
    return _lock(folder, "store")


def remove_old(store: Store, folder: Address, before: float, ended: str = "") -> list[Address]:
    """Remove from object storage what was written before that time, or by the attempt `ended`, and not committed."""
    found = [(folder / name, age, match["attempt"]) for name, age in folder.objects()
             if (match := _WRITTEN.fullmatch(name))]
    return _remove_uncommitted(store, [file for file, age, attempt in found if age < before or attempt == ended])


def remove_orphans(store: Store, folder: Path) -> list[Path]:
    """Remove what attempts that live no more have written and not committed; the files removed. Call it `alone`."""
    files = [*folder.glob("*.parquet"), *folder.glob(".*.tmp")]
    found = [(file, match["attempt"]) for file in files if (match := _WRITTEN.fullmatch(file.name))]
    locks = {lock.stem for lock in (folder / LOCKS).glob("*.lock")} - {"store"}
    dead = {name for name in locks | {attempt for _, attempt in found} if not _lives(folder, name)}
    orphans = _remove_uncommitted(store, [file for file, attempt in found if attempt in dead])
    for name in dead:
        (folder / LOCKS / f"{name}.lock").unlink(missing_ok=True)
    return orphans


_Kind = TypeVar("_Kind", Path, Address)


def _remove_uncommitted(store: Store, files: Sequence[_Kind]) -> list[_Kind]:
    """Remove files of dead attempts that are not committed."""
    # Read once they are known to be dead: what died before has committed by now whatever it will ever commit.
    committed = set(store.files()) if store.exists() else set()
    orphans = [file for file in files if str(file) not in committed]
    for file in orphans:
        file.unlink()
    return orphans


def _lives(folder: Path, attempt: str) -> bool:
    if not (folder / LOCKS / f"{attempt}.lock").exists():
        return False
    try:
        with _lock(folder, attempt).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _lock(folder: Path, name: str) -> FileLock:
    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    return FileLock(folder / LOCKS / f"{name}.lock")
