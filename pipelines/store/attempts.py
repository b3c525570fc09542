"""Attempts at an ingest: who is writing into a store now, and what killed ones have left behind.

A running attempt holds a file lock, which its system takes away with its process, however that ends. A Parquet file of
an attempt without that lock, which no version of the store names, is of no use to anybody.
"""
from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.store.table import ImageTextStore

LOCKS = "_ingests"
"""The folder of the locks inside a store's; Delta leaves alone what begins with '_'."""
_WRITTEN = re.compile(r"\.?.+-\d{6}-\d{4}-(?P<attempt>[0-9a-f]{8})\.parquet(\.[0-9a-f]{8}\.tmp)?")


def file_name(batch_id: str, part: int, piece: int, attempt: str) -> str:
    """The name of one file that an attempt writes."""
    return f"{batch_id}-{part:06d}-{piece:04d}-{attempt}.parquet"


@contextmanager
def attempt_at(store: ImageTextStore) -> Iterator[str]:
    """A new attempt's name, for the time in which its files may lie in the store without being committed."""
    attempt = uuid.uuid4().hex[:8]
    mine = _lock(store, attempt)
    with alone(store):
        remove_orphans(store)
        mine.acquire()
    try:
        yield attempt
    finally:
        mine.release()
        with alone(store):
            remove_orphans(store)


def alone(store: ImageTextStore) -> FileLock:
    """A lock that only one process holds at a time: from looking at what the store has to the commit."""
    return _lock(store, "store")


def remove_orphans(store: ImageTextStore) -> list[Path]:
    """Remove what attempts that live no more have written and not committed; the files removed. Call it `alone`."""
    files = [*store.path.glob("*.parquet"), *store.path.glob(".*.tmp")]
    found = [(file, match["attempt"]) for file in files if (match := _WRITTEN.fullmatch(file.name))]
    locks = {lock.stem for lock in (store.path / LOCKS).glob("*.lock")} - {"store"}
    dead = {name for name in locks | {attempt for _, attempt in found} if not _lives(store, name)}
    # Read behind the locks: what died before that has committed by now whatever it will ever commit.
    committed = set(store.files()) if store.exists() else set()
    orphans = [file for file, attempt in found if attempt in dead and str(file) not in committed]
    for file in orphans:
        file.unlink()
    for name in dead:
        (store.path / LOCKS / f"{name}.lock").unlink(missing_ok=True)
    return orphans


def _lives(store: ImageTextStore, attempt: str) -> bool:
    if not (store.path / LOCKS / f"{attempt}.lock").exists():
        return False
    try:
        with _lock(store, attempt).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _lock(store: ImageTextStore, name: str) -> FileLock:
    folder = store.path / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")
