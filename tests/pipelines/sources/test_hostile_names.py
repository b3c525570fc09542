"""Names that lead astray, in tars, JSON and captions files: each is refused, nothing outside is read or written."""
from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.sources.files import Refused, read_image, safe_name
from tests.pipelines.sources import layouts
from tests.pipelines.sources.conftest import Ingest
from tests.pipelines.sources.layouts import Truth

SECRET = layouts.pictures(9)[-1].image
HOSTILE = [
    "/outside/secret.jpg", "//outside/secret.jpg", "../outside/secret.jpg", "../../secret.jpg", "sub/../../secret.jpg",
    "./../outside/secret.jpg", "sub/..", "..", ".", "", " ", "sub/", "a\0.jpg", "../outside/secret.jpg\0.jpg",
    "a\nb.jpg", "\x1b[2Ja.jpg", "a\u202egpj.jpg", "C:\\secret.jpg", "C:/secret.jpg", "\\\\server\\share\\secret.jpg",
    "..\\outside\\secret.jpg", "file:///outside/secret.jpg", "http://127.0.0.1/secret.jpg", "s3://bucket/secret.jpg",
    "~/secret.jpg", "~root/secret.jpg", "CON", "sub/nul.jpg", "COM1.png", "LPT9", "/dev/zero", "/proc/self/environ",
    "x" * 300 + ".jpg", "a/" * 600 + "a.jpg", "link.jpg", "linked/secret.jpg", "pipe.jpg", "device.jpg",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of images with hostile links in it, and a secret outside."""
    layouts.write(tmp_path / "outside/secret.jpg", SECRET)
    layouts.write(tmp_path / "secret.jpg", SECRET)
    for p in layouts.pictures(3):
        layouts.write(tmp_path / f"root/{p.number}.jpg", p.image)
    (tmp_path / "root/sub").mkdir()
    (tmp_path / "root/link.jpg").symlink_to(tmp_path / "outside/secret.jpg")
    (tmp_path / "root/linked").symlink_to(tmp_path / "outside")
    (tmp_path / "root/device.jpg").symlink_to("/dev/zero")
    (tmp_path / "root/inside.jpg").symlink_to(tmp_path / "root/1.jpg")
    os.mkfifo(tmp_path / "root/pipe.jpg")
    return tmp_path / "root"


def names(root: Path) -> list[str]:
    """The hostile names, those that are absolute leading to the real secret."""
    return [name.replace("/outside", f"{root.parent}/outside") if name.startswith(("/", "file:")) else name
            for name in HOSTILE]


def outside(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (root.parent / "outside").iterdir()}


def test_every_hostile_name_is_refused_before_anything_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(HOSTILE) >= 30
    opened: list[str] = []
    plain_open = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(str(path)) or plain_open(
        path, *rest, **more))
    for name in names(root):
        with pytest.raises(Refused) as refused:
            read_image(str(root), [name])
        assert refused.value.reason in ("unsafe name", "not a file"), name
    assert all(path.startswith(f"{root}/") for path in opened)
    assert read_image(str(root), ["./1.jpg"]) == read_image(str(root), ["inside.jpg"]) == layouts.pictures(1)[0].image


@pytest.mark.parametrize("name", ["a.jpg", "sub/a b.jpg", "été/ü.jpg", "....jpg", "a..b.jpg", "console.jpg", "com.jpg"])
def test_honest_names_pass(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("format", ["folder", "coco", "karpathy"])
def test_in_captions_files_and_json(format: str, root: Path, ingest: Ingest, stored: Callable[[], Truth],
                                    refused: Callable[[], dict[str, str]]) -> None:
    listed = ["1.jpg", *names(root), "2.jpg"]
    if format == "folder":
        file = layouts.write(root.parent / "captions.jsonl", "\n".join(
            json.dumps({"image": name, "caption": "a picture"}) for name in listed))
        keys = {"path": root, "captions": file, "split": "train"}
    elif format == "coco":
        file = layouts.write_json(root.parent / "c.json", {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(listed)],
            "annotations": [{"id": i, "image_id": i, "caption": "a"} for i in range(len(listed))]})
        keys = {"path": file, "images": root, "split": "train"}
    else:
        file = layouts.write_json(root.parent / "dataset_coco.json", {"images": [
            {"filename": name, "cocoid": i, "split": "train", "sentences": [{"raw": "a"}]}
            for i, name in enumerate(listed)]})
        keys = {"path": file, "images": root}
    before = outside(root)
    report = ingest(format=format, **keys, max_bad_share=1)
    assert sum(report.quarantined.values()) == len(HOSTILE)
    assert set(report.quarantined) <= {"unsafe name", "not a file"}
    assert len(stored()) == 2 and all(image != SECRET for image, _, _ in stored().values())
    assert outside(root) == before and set(refused().values()) <= {"unsafe name", "not a file"}


def test_in_tars(root: Path, ingest: Ingest, stored: Callable[[], Truth]) -> None:
    p = layouts.pictures(1)[0]
    made_here = ("link.jpg", "linked/secret.jpg", "pipe.jpg", "device.jpg")
    # The tar format itself ends a name at its first NUL: of a\0.jpg it makes a, which is no image to anybody.
    astray = [name for name in names(root) if name.partition("\0")[0].endswith((".jpg", ".png"))
              and name not in made_here]
    layouts.tar(root.parent / "shards/good.tar", [("good.jpg", p.image), ("good.txt", b"a")])
    for number, name in enumerate(astray):  # a whole sample, were it not for its name
        layouts.tar(root.parent / f"shards/{number}.tar", [(name, p.image), (name[:-4] + ".txt", b"a")])
    with tarfile.open(root.parent / "shards/special.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"special{number}.jpg")
            info.type, info.linkname = kind, str(root.parent / "outside/secret.jpg")
            tar.addfile(info)
            text = tarfile.TarInfo(f"special{number}.txt")
            text.size = 1
            tar.addfile(text, io.BytesIO(b"a"))
    before, everything = outside(root), set(root.parent.rglob("*"))
    report = ingest(format="webdataset", path=root.parent / "shards", split="train", max_bad_share=1)
    assert report.quarantined == {"not a file": 4, "unsafe name": len(astray)}
    assert [image for image, _, _ in stored().values()] == [p.image]
    assert outside(root) == before
    new = set(root.parent.rglob("*")) - everything
    assert all(path.is_relative_to(root.parent / "store") or path.is_relative_to(root.parent / "store.quarantine")
               for path in new)
