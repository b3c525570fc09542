"""Small file operations that are whole or absent."""
from __future__ import annotations

import mmap
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipelines.location import Address, Place


def sync(path: Path) -> None:
    """Flush a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(place: Place) -> Iterator[IO[bytes]]:
    """A file to write to that is at `place` at the end of the block, whole; where the block raises, nothing is."""
    if isinstance(place, Address):
        with tempfile.TemporaryFile() as file:
            yield file
            file.flush()
            place.write_bytes(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        return
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
        sync(place.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(place: Place, content: bytes) -> None:
    """Write `content` to `place` so that a reader sees the old file or the new one, never a part."""
    with writing(place) as file:
        file.write(content)
