"""A full disk: seen before the work where that can be, and told in one line wherever it surfaces (no torch or ray)."""
from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import UserError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_WORDS = re.compile("No space left on device|Disk quota exceeded|"
                    r"Not enough free space to write|\d+ requested and \d+ written")
"""Of libraries that hand on the system's words without its number, and of NumPy, which has words of its own."""
FULL = os.strerror(errno.ENOSPC)
"""What a task that met a full disk returns as its mistake: Ray would bury the exception under its own."""
FEW_FILES = 1000
"""Where fewer files can be made than this, it is said beside the bytes."""


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is at the bottom of `error`."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _NUMBERS) or _WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(path: Path) -> int:
    """Free space at `path`, or at its nearest folder that exists."""
    return shutil.disk_usage(_nearest(path)).free


def show(size: float) -> str:
    """A number of bytes for people."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 or not size else f"{size / 2**10:.0f} KiB"


def no_room(folder: Path, what: str, needed: float | None) -> str:
    """The line that says that `what`, which takes `needed` bytes where that is known, finds no room in `folder`."""
    found = os.statvfs(_nearest(folder))
    files = f" (for {found.f_favail} files)" if found.f_files and found.f_favail < FEW_FILES else ""
    takes = f"no room for {what}" if needed is None else f"{what} takes about {show(needed)}"
    return (f"the disk of {folder} is full: {takes}, {show(free_bytes(folder))}{files} are free; what was there before "
            "is untouched: free some space and run the same command again")


def demand_room(folder: Path, what: str, needed: float) -> None:
    """UserError where the disk of `folder` has less than `needed` bytes free for `what`."""
    if needed > free_bytes(folder):
        raise UserError(no_room(folder, what, needed))


@contextmanager
def full_disk_told(folder: Path, what: str, needed: float | None) -> Iterator[None]:
    """Turn a full disk in the block into a UserError. The block cleans up by itself, so that the line tells what is
    free without what was half written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise UserError(no_room(folder, what, needed)) from error


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
