"""Where data lie: a path of this machine, or an address in object storage (s3://, gs://), as one kind of thing.

Keys, endpoint and region come from the environment, as the SDKs of AWS and Google read them.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STORE = re.compile(r"(s3|gs)://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)+")
_FAULTS = [(re.compile(pattern), meaning) for pattern, meaning in (
    (r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist",
     "there is no such bucket: create it, or name another"),
    (r"169\.254\.169\.254|UNAUTHENTICATED|[Cc]redentials.*not (be )?(found|loaded)", "no keys were found: {keys}"),
    (r"AWS Error (NETWORK_CONNECTION|REQUEST_TIMEOUT)|error sending request|UNAVAILABLE",
     "{endpoint} does not answer: correct it, or look at the network"),
    (r"PermanentRedirect|AuthorizationHeaderMalformed|incorrectly configured region",
     "the bucket lies in another region: set AWS_REGION to it"),
    (r"ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|PERMISSION_DENIED|40[13] (Forbidden|Unauthorized)",
     "access is denied: {keys}"),
)]
"""What the errors of pyarrow's file systems and of Delta's say, and what it means."""
_OF_STORAGE = re.compile(r"AWS Error|google::cloud|Generic (S3|GCS) error|Error performing [A-Z]+ http")


def is_local(place: str) -> bool:
    """Whether `place` is a path of this machine's file system."""
    return not _SCHEME.match(place)


@dataclass(frozen=True, order=True)
class Address:
    """A place in object storage, with what is needed here of pathlib's interface.

    Folders are there as long as something lies in them. Raises UserError for an address that cannot hold a store.
    """

    uri: str

    def __post_init__(self) -> None:
        if not _STORE.fullmatch(self.uri):
            raise UserError(f"{self.uri}: this address cannot hold a store: write s3://bucket/folder or "
                            "gs://bucket/folder, of letters, digits and ._=-; endpoint and keys come from the "
                            "environment")

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.uri.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> Address:
        """The folder."""
        return Address(self.uri.rpartition("/")[0])

    def with_name(self, name: str) -> Address:
        """Another place in the same folder."""
        return Address(f"{self.uri.rpartition('/')[0]}/{name}")

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders need no making."""

    def exists(self) -> bool:
        """Whether an object lies here, or something below."""
        return bool(self._info().type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether an object lies here."""
        return bool(self._info().is_file)

    def glob(self, pattern: str) -> Iterator[Address]:
        """The objects below whose names, relative to this folder, match `pattern`, in a fixed order."""
        for name, _ in self.objects(recursive="/" in pattern):
            relative = PurePosixPath(name)
            if relative.match(pattern) and len(relative.parts) == pattern.count("/") + 1:
                yield self / name

    def objects(self, recursive: bool = False) -> list[tuple[str, float]]:
        """Names, relative to this folder, and ages (seconds since the epoch) of the objects in it, sorted."""
        system, path = locate(self)
        with reaching(self):
            found = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=recursive))
        return sorted((info.path[len(path) + 1:], info.mtime_ns / 1e9) for info in found if info.is_file)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's content."""
        system, path = locate(self)
        with reaching(self), system.open_input_stream(path, compression=None) as stream:
            return str(stream.read(), encoding)

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Put the object, whole or not at all: nobody sees it before its last byte has come."""
        system, path = locate(self)
        with reaching(self):
            # In one call and without `with`: a stream that is closed because of an error makes a part visible.
            stream = system.open_output_stream(path, compression=None)
            stream.write(content)
            stream.close()

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        system, path = locate(self)
        try:
            with reaching(self):
                system.delete_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def _info(self) -> fs.FileInfo:
        system, path = locate(self)
        with reaching(self):
            return system.get_file_info(path)


Place = Path | Address
"""Where a store or a task table lies."""


def place_of(name: str | Place) -> Place:
    """The place that a key names, paths made absolute; UserError for an address that cannot hold a store."""
    if isinstance(name, Address):
        return name
    if isinstance(name, str) and not is_local(name):
        return Address(name.rstrip("/"))
    return Path(name).expanduser().absolute()


def folder_of(key: str, name: str, what: str) -> Path:
    """The absolute path of the folder that `key` names; UserError for an address, where `what` cannot lie."""
    if not is_local(name):
        raise UserError(f"{key}={name} is an address: {what} lie in a folder that every node sees, name its path")
    return Path(name).expanduser().absolute()


def locate(place: str | Place) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address, and the path in it; UserError for an address that nothing serves."""
    text = str(place)
    if is_local(text):
        return fs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise UserError(f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}{parts.path}: keys do not belong into "
                        f"an address: {_keys(parts.scheme)}")
    try:
        if parts.scheme not in ("s3", "gs"):
            raise ValueError("a file here is named by its plain path" if parts.scheme == "file" else parts.scheme)
        system = _connect(f"{parts.scheme}://{parts.netloc}{parts.query and '?'}{parts.query}")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{place}: this address cannot be used ({error}): a path, s3:// or gs:// is understood"
                        ) from error
    return system, f"{parts.netloc}{unquote(parts.path)}".rstrip("/")


@lru_cache
def _connect(bucket: str) -> fs.FileSystem:
    """One file system a bucket and process: making it takes time, and it holds the connections."""
    if bucket.startswith("gs:") and "?" not in bucket:
        bucket += "?retry_limit_seconds=60"  # by itself it tries for a quarter of an hour
    return fs.FileSystem.from_uri(bucket)[0]


def size_of(place: str | Place) -> int:
    """Bytes of the file or object."""
    system, path = locate(place)
    with reaching(place):
        return int(system.get_file_info(path).size)


def join(folder: str, name: str) -> str:
    """The place of `name` below `folder`; an address keeps what stands behind its '?'."""
    if is_local(folder):
        return f"{folder.rstrip('/')}/{name}"
    place, question, options = folder.partition("?")
    return f"{place.rstrip('/')}/{quote(name)}{question}{options}"


def reach(place: str | Place) -> None:
    """Raise UserError where `place` is an address whose bucket is not there, or not for us; each is asked once."""
    if not is_local(str(place)):
        locate(place)  # what is wrong with the address itself
        parts = urlsplit(str(place))
        _reach(f"{parts.scheme}://{parts.netloc}{parts.query and '?'}{parts.query}")


@lru_cache
def _reach(bucket: str) -> None:
    system, path = locate(bucket)
    with reaching(bucket.partition("?")[0]):
        if system.get_file_info(path).type == fs.FileType.NotFound:
            raise UserError(f"{bucket.partition('?')[0]}: there is no such bucket: create it, or name another")


def storage_options(place: Place) -> dict[str, str] | None:
    """What Delta must know of an address beside what the environment says."""
    if isinstance(place, Path) or place.uri.startswith("gs:"):
        return None  # Google's storage commits conditionally by itself
    # A commit is an object that must not be there yet (If-None-Match: *): of two that race one is refused, by the
    # store itself. Said here, so that no variable of the environment takes it away. http is only for an endpoint
    # that AWS_ENDPOINT_URL names so.
    return {"conditional_put": "etag", "allow_http": "true", "region": str(locate(place)[0].region)}


def fault(error: BaseException, place: str | Place) -> str | None:
    """The line that tells of an object store's answer which the user can mend; None for any other error."""
    text = str(error)
    if not _OF_STORAGE.search(text):
        return None
    scheme = urlsplit(str(place)).scheme
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    for pattern, meaning in _FAULTS:
        if pattern.search(text):
            named = f"AWS_ENDPOINT_URL={endpoint}" if scheme == "s3" and endpoint else "its endpoint"
            return f"{place}: {meaning.format(keys=_keys(scheme), endpoint=named)}"
    return None


@contextmanager
def reaching(place: str | Place) -> Iterator[None]:
    """Turn what an object store answers, and the user can mend, into a UserError that names `place`."""
    try:
        yield
    except Exception as error:
        line = fault(error, place)
        if line is None:
            raise
        raise UserError(line) from error


def _keys(scheme: str) -> str:
    if scheme == "gs":
        return "set GOOGLE_APPLICATION_CREDENTIALS to keys that may use it, or give this machine such a role"
    known = os.environ.get("AWS_ACCESS_KEY_ID")
    return ("AWS_ACCESS_KEY_ID is not set: set it and AWS_SECRET_ACCESS_KEY" if not known else
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be keys that may use it"
            ) + ", or give this machine a role that may"
