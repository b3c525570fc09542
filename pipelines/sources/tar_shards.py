"""WebDataset: tars in which the files of one sample stand one after another, `{key}.jpg`, `.txt`, `.json`.

Tars are read as streams and nothing is ever unpacked: a member's name only tells its key and what it is.
"""
from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pipelines.errors import UserError
from pipelines.location import join
from pipelines.sources.files import MAX_IMAGE_BYTES, Refused, open_file, safe_name
from pipelines.sources.json_files import field
from pipelines.sources.record import Rejected, Sample

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXTS = ("txt", "json")
MAX_TEXT = 16 * 2**20
MAX_HEADER = 2**20
ENDINGS = (".tar", ".tar.gz", ".tgz")
_ENDING = re.compile(r"(\.tar(\.gz)?|\.tgz)$", re.IGNORECASE)
_LONG_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                 tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True)
class TarSource:
    """A source (see record.py) whose parts are the shards of a folder."""

    name: str
    settings: Mapping[str, Any]
    folder: str
    shards: tuple[str, ...]
    """Names of the tars below the folder."""
    split: str
    caption_field: str
    """Field of the .json with the caption, where a sample has no .txt."""
    shard_in_id: bool
    """Whether the same key in two shards means two samples, as it does unless img2dataset numbered them."""

    @property
    def parts(self) -> int:
        """Number of shards."""
        return len(self.shards)

    def read(self, part: int) -> Iterator[Sample | Rejected]:
        """The samples of one shard, in its order; UserError where it is no whole tar."""
        shard = self.shards[part]
        prefix = f"{self.name}/{_ENDING.sub('', shard)}" if self.shard_in_id else self.name
        members = _members(join(self.folder, shard))
        for key, of_sample in groupby(members, lambda member: member[0]):
            files: dict[str, bytes] = {}
            refused: Refused | None = None
            for _, ending, content in of_sample:
                if isinstance(content, Refused):
                    refused = refused or content
                else:
                    files.setdefault(ending, content)
            try:
                if refused is not None:
                    raise refused
                yield self._sample(f"{prefix}/{key}", files)
            except Refused as error:
                yield Rejected(f"{prefix}/{key[:200]}", error.reason, error.detail)

    def _sample(self, sample_id: str, files: Mapping[str, bytes]) -> Sample:
        image = next((files[ending] for ending in IMAGES if ending in files), None)
        if image is None:
            raise Refused("missing file", f"no image beside {', '.join(files) or 'nothing that is read'}")
        described = _json(files["json"]) if "json" in files else {}
        if "txt" in files:
            captions = [_decoded("txt", files["txt"])]
        else:
            told = field(described, self.caption_field, (str, list)) if described.get(self.caption_field) else []
            texts = [told] if isinstance(told, str) else told
            captions = [field({"caption": text}, "caption", str) for text in texts]
        metadata = {"url": field(described, "url", str)} if described.get("url") else {}
        return Sample(sample_id, self.split, image, tuple(captions), metadata)


class _Member(tarfile.TarInfo):
    """A header that is damaged or missing is an error: tarfile takes it for the end, and loses what follows."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} where a file or the end should be") from error
        if member.type in _LONG_HEADERS and member.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _members(place: str) -> Iterator[tuple[str, str, bytes | Refused]]:
    """Key, ending and content of each file of a tar that is of use; a Refused in place of the content of a bad one."""
    try:
        with (open_file(place) as stream,
              tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar):
            for member in tar:
                if not member.isdir():
                    yield from _content(tar, member)
                tar.members = []  # type: ignore[attr-defined]  # it would keep a record of every member
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{place} is not a whole tar ({error}): download this shard again, or remove it") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[tuple[str, str, bytes | Refused]]:
    folder, _, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    key, ending = f"{folder}/{stem}".lstrip("/"), ending.lower()
    try:
        key = safe_name(member.name).removesuffix(base) + stem
        if not member.isreg():
            raise Refused("not a file", f"{member.name[:200]!r} is a link, a device or a pipe")
        if ending in IMAGES or ending in TEXTS:
            limit = MAX_IMAGE_BYTES if ending in IMAGES else MAX_TEXT
            if member.size > limit:
                raise Refused("too many bytes", f"{member.name[:200]} has {member.size:,} bytes, more than {limit:,}")
            file = tar.extractfile(member)
            assert file is not None
            yield key, ending, file.read()
        else:
            yield key, ending, b""  # so that a sample of nothing else is missed by somebody
    except Refused as error:
        yield key.encode(errors="replace").decode(), ending, error


def _decoded(ending: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("wrong encoding", f".{ending} is not UTF-8") from error


def _json(content: bytes) -> dict[str, Any]:
    text = _decoded("json", content)
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("wrong fields", f".json is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise Refused("wrong fields", ".json is no object")
    return described
