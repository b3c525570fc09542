"""A real file system of a few MiB, mounted for a test, that can be filled, emptied and enlarged."""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """The folder that it is mounted at."""

    path: Path

    def fill(self, left: int = 0) -> None:
        """Take all of its space but `left` bytes."""
        with open(self.path / "filler", "ab") as file:
            room = shutil.disk_usage(self.path).free - left
            if room > 0:
                os.posix_fallocate(file.fileno(), file.tell(), room)

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.path / "filler").unlink()

    def change(self, options: str) -> None:
        """Mount it with other options, such as `size=64m`."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def names(self) -> set[str]:
        """What lies on it, but for the filler."""
        return {path.name for path in self.path.iterdir()} - {"filler"}


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[SmallDisk]:
    """A file system in memory at the new `folder`; skips the test where none may be mounted."""
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
