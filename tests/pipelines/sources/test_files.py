"""Files by path and by address: the same bytes, names, hashes and refusals.

A local folder stands for the bucket here, behind pyarrow's file-system interface.
"""
from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.sources import files
from pipelines.sources.config import file_name
from tests.pipelines.sources import layouts

OPTIONS = "?region=eu-west-1&endpoint_override=127.0.0.1:9"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a bucket that lies in <tmp_path>/bucket."""
    (tmp_path / "bucket").mkdir()
    plain = files.locate

    def locate(place: str) -> tuple[fs.FileSystem, str]:
        if not place.startswith("s3://"):
            return plain(place)
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), place[5:].partition("?")[0]
    monkeypatch.setattr(files, "locate", locate)
    return f"s3://bucket{OPTIONS}"


def test_an_address_gives_what_a_folder_gives(bucket: str, tmp_path: Path) -> None:
    found = layouts.pictures(3)
    for p in found:
        layouts.write(tmp_path / f"bucket/sub/{p.number}.jpg", p.image)
    layouts.write(tmp_path / "bucket/notes.txt.gz", gzip.compress(b"words"))
    here = str(tmp_path / "bucket")
    listed = list(files.list_files(bucket))
    assert listed == list(files.list_files(here)) and [name for name, _ in listed] == [
        "notes.txt.gz", "sub/1.jpg", "sub/2.jpg", "sub/3.jpg"]
    assert files.hash_folder(bucket) == files.hash_folder(here)
    name = files.join(bucket, "notes.txt.gz")
    assert name == f"s3://bucket/notes.txt.gz{OPTIONS}" and file_name(name) == "notes.txt.gz"
    assert files.hash_file(name) == files.hash_file(f"{here}/notes.txt.gz")
    with files.open_file(name) as stream:
        assert stream.read() == b"words"
    assert files.read_image(bucket, ["none.jpg", "sub/2.jpg"]) == found[1].image
    files.need_folder("source.path", bucket)
    files.need_file("source.path", name)


def test_an_address_refuses_what_a_folder_refuses(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write(tmp_path / "bucket/sub/large.jpg", b"x" * 101)
    layouts.write(tmp_path / "secret.jpg", b"secret")
    monkeypatch.setattr(files, "MAX_IMAGE_BYTES", 100)
    for place in (bucket, str(tmp_path / "bucket")):
        for name, reason in (("../secret.jpg", "unsafe name"), ("none.jpg", "missing file"), ("sub", "not a file"),
                             ("sub/large.jpg", "too many bytes")):
            with pytest.raises(files.Refused) as refused:
                files.read_image(place, [name])
            assert refused.value.reason == reason
    with pytest.raises(UserError, match="source.path=.* does not exist: name a folder that does"):
        files.need_folder("source.path", files.join(bucket, "nowhere"))


def test_an_address_that_nothing_serves_is_one_line() -> None:
    for place in ("gopher://host/data", "file:///data"):
        with pytest.raises(UserError, match=f"^{place}: this address cannot be used .*s3:// or gs:// is understood$"):
            files.locate(place)
