"""Files of a source by path or address (local, s3://, gs://): open, list, hash them, and refuse names that lead astray.

File names inside data sets come from strangers. A name is used only after `safe_name` has looked at it, and only below
the folder that the user has named; links that leave that folder, devices and pipes are refused too.
"""
from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.location import is_local, locate, reach, reaching

MAX_IMAGE_BYTES = 64 * 2**20
"""An encoded image of more bytes is refused before it is read."""

MAX_GROWTH, MIN_LIMIT = 100, 64 * 2**20
"""A compressed file may grow so many times, and to so many bytes anyhow; texts grow 5 to 30 times."""
_CODECS = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bz2", ".lz4": "lz4", ".zst": "zstd"}
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_CHUNK = 2**20


class Refused(ValueError):
    """A record that is no good; `reason` is the same few words for every record of its kind."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def need_file(key: str, place: str) -> None:
    """Raise UserError naming `key` unless `place` is a file that holds something."""
    info = _info(key, place, "a file")
    if info.type == fs.FileType.Directory:
        raise UserError(f"{key}={place} is a folder: name the file in it")
    if info.size == 0:
        raise UserError(f"{key}={place} is empty (0 bytes): restore it or download it again")


def need_folder(key: str, place: str) -> None:
    """Raise UserError naming `key` unless `place` is a folder."""
    if _info(key, place, "a folder").type != fs.FileType.Directory:
        raise UserError(f"{key}={place} is a file: name the folder")


def is_folder(place: str) -> bool:
    """Whether a folder lies at `place`."""
    system, path = locate(place)
    with reaching(place):
        return bool(system.get_file_info(path).type == fs.FileType.Directory)


def _info(key: str, place: str, what: str) -> fs.FileInfo:
    if not place:
        raise UserError(f"{key} is missing: name {what}, {key}=PATH")
    reach(place)
    system, path = locate(place)
    try:
        with reaching(f"{key}={place}"):
            info = system.get_file_info(path)
    except OSError as error:
        raise UserError(f"{key}={place} cannot be reached: {_first_line(error)}") from error
    if info.type == fs.FileType.NotFound:
        raise UserError(f"{key}={place} does not exist: name {what} that does")
    return info


def open_file(place: str) -> io.BufferedReader:
    """The file's bytes as a stream, decompressed where its name ends in .gz, .tgz, .bz2, .lz4 or .zst.

    UserError where it cannot be read, and later where it decompresses to MAX_GROWTH times its size.
    """
    system, path = locate(place)
    codec = next((codec for ending, codec in _CODECS.items() if path.lower().endswith(ending)), None)
    try:
        with reaching(place):
            file = system.open_input_file(path)
            return io.BufferedReader(file if codec is None else _Unpacked(place, file, codec), _CHUNK)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place} cannot be read ({_first_line(error)})") from error


class _Unpacked(io.RawIOBase):
    """A compressed file as it was; a few bytes of one may stand for gigabytes of one text, so its growth is bounded."""

    def __init__(self, place: str, file: pa.NativeFile, codec: str) -> None:
        self._place, self._size = place, file.size()
        self._stream, self._left = pa.CompressedInputStream(file, codec), max(MIN_LIMIT, MAX_GROWTH * self._size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[:len(content)] = content
        self._left -= len(content)
        if self._left < 0:
            raise UserError(f"{self._place} decompresses to more than {MAX_GROWTH} times its {self._size:,} bytes: "
                            "unpack it, if you know what it is")
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def list_files(folder: str, endings: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """Names relative to `folder`, with '/', and sizes of the files below it, sorted; linked folders are left out."""
    found = _walk(locate(folder)[1], "") if is_local(folder) else iter(_objects(folder))
    wanted = tuple(ending.lower() for ending in endings)
    yield from ((name, size) for name, size in found if not wanted or name.lower().endswith(wanted))


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(folder) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): mend its permissions, or move it away") from error
    for entry in here:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield prefix + entry.name, entry.stat().st_size


def _objects(folder: str) -> list[tuple[str, int]]:
    system, path = locate(folder)
    with reaching(folder):
        infos = system.get_file_info(fs.FileSelector(path, recursive=True))
    return sorted((info.path[len(path):].removeprefix("/"), info.size) for info in infos if info.is_file)


def hash_file(place: str) -> str:
    """SHA-256 of the file's bytes."""
    system, path = locate(place)
    digest = hashlib.sha256()
    with reaching(place), system.open_input_stream(path, compression=None) as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def hash_folder(folder: str) -> str:
    """SHA-256 of the names and sizes of all files below the folder."""
    digest = hashlib.sha256()
    for name, size in list_files(folder):
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def safe_name(name: str) -> str:
    """The relative name without '.' parts; raises Refused unless it stays below its folder on every system."""
    parts = [part for part in name.split("/") if part != "."]
    fault = ""
    if not name.isprintable():
        fault = "it holds control characters"
    elif not name.strip() or not parts or not parts[-1]:
        fault = "it names no file"
    elif name.startswith(("/", "~")) or re.match(r"[A-Za-z]:", name):
        fault = "it is absolute: write it relative to the folder"
    elif not is_local(name) or name.startswith("file:"):
        fault = "it is an address: write it relative to the folder"
    elif "\\" in name:
        fault = "it holds a backslash: write /"
    elif ".." in parts:
        fault = "it climbs out of its folder (..)"
    elif any(_DEVICE.match(part) for part in parts):
        fault = "it names a device"
    elif any(len(part.encode()) > 255 for part in parts) or len(name) > 1024:
        fault = "it is too long for a file"
    if fault:
        raise Refused("unsafe name", f"{name[:80]!r}: {fault}")
    return "/".join(part for part in parts if part)


def read_image(folder: str, names: Sequence[str]) -> bytes:
    """The bytes of the first of `names` that lies below `folder`.

    Raises Refused: `unsafe name`, `missing file`, `not a file`, `unreadable file` or `too many bytes`.
    """
    for name in map(safe_name, names):
        found = _read_local(folder, name) if is_local(folder) else _read_remote(folder, name)
        if found is not None:
            return found
    raise Refused("missing file", " or ".join(names))


def _read_local(folder: str, name: str) -> bytes | None:
    root = os.path.realpath(Path(folder).expanduser())
    path = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath([root, path]) != root:
        raise Refused("unsafe name", f"{name!r} is a link that leaves {folder}: put the file there itself")
    try:
        # Without O_NONBLOCK a pipe would wait for ever for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise Refused("unreadable file", f"{name}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not a file", name)
        _check_size(name, status.st_size)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise Refused("unreadable file", f"{name}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _read_remote(folder: str, name: str) -> bytes | None:
    system, path = locate(folder)
    with reaching(f"{folder}/{name}"):
        try:
            with system.open_input_file(f"{path}/{name}") as file:
                _check_size(name, file.size())
                return bytes(file.read())
        except FileNotFoundError:
            if system.get_file_info(f"{path}/{name}").type == fs.FileType.Directory:
                raise Refused("not a file", name) from None
            return None


def _check_size(name: str, size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise Refused("too many bytes", f"{name} has {size:,} bytes, more than {MAX_IMAGE_BYTES:,}")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
