"""Files by path and by address: the same bytes, names, hashes and refusals."""
from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.location import join
from pipelines.sources import files
from pipelines.sources.config import file_name
from tests import s3_server
from tests.pipelines.sources import layouts


def test_an_address_gives_what_a_folder_gives(bucket: str, tmp_path: Path) -> None:
    found = layouts.pictures(3)
    for p, name in zip(found, ("1.jpg", "zwei und %20 ü.jpg", "3?.jpg"), strict=True):
        layouts.write(tmp_path / "sub" / name, p.image)
    layouts.write(tmp_path / "notes.txt.gz", gzip.compress(b"words"))
    here = str(tmp_path)
    s3_server.upload(tmp_path, bucket)
    listed = list(files.list_files(bucket))
    assert listed == list(files.list_files(here)) and [name for name, _ in listed] == [
        "notes.txt.gz", "sub/1.jpg", "sub/3?.jpg", "sub/zwei und %20 ü.jpg"]
    assert files.hash_folder(bucket) == files.hash_folder(here)
    name = join(bucket, "notes.txt.gz")
    assert file_name(f"{name}?region=x") == "notes.txt.gz" and files.hash_file(name) == files.hash_file(
        f"{here}/notes.txt.gz")
    with files.open_file(name) as stream:
        assert stream.read() == b"words"
    for p, image in zip(found, ("1.jpg", "zwei und %20 ü.jpg", "3?.jpg"), strict=True):
        assert files.read_image(bucket, ["none.jpg", f"sub/{image}"]) == p.image
    assert files.is_folder(bucket) and files.is_folder(f"{bucket}/sub") and not files.is_folder(name)
    files.need_folder("source.path", bucket)
    files.need_file("source.path", name)


def test_an_address_refuses_what_a_folder_refuses(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write(tmp_path / "here/sub/large.jpg", b"x" * 101)
    layouts.write(tmp_path / "secret.jpg", b"secret")
    layouts.write(tmp_path / "here/empty.json", b"")
    s3_server.upload(tmp_path, bucket)
    monkeypatch.setattr(files, "MAX_IMAGE_BYTES", 100)
    for place in (f"{bucket}/here", str(tmp_path / "here")):
        for name, reason in (("../secret.jpg", "unsafe name"), ("none.jpg", "missing file"), ("sub", "not a file"),
                             ("sub/large.jpg", "too many bytes"), ("sub/large.jpg/x.jpg", "missing file"),
                             (f"{bucket}/secret.jpg", "unsafe name"), ("sub/\x00.jpg", "unsafe name")):
            with pytest.raises(files.Refused) as refused:
                files.read_image(place, [name])
            assert refused.value.reason == reason
        with pytest.raises(UserError, match="source.path=.* does not exist: name a folder that does"):
            files.need_folder("source.path", join(place, "nowhere"))
        with pytest.raises(UserError, match="source.path=.* is empty"):
            files.need_file("source.path", join(place, "empty.json"))
        with pytest.raises(UserError, match="source.path=.* is a folder"):
            files.need_file("source.path", join(place, "sub"))
