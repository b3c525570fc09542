"""Damaged files: each is one error that names the file and the mend, and nothing is appended."""
from __future__ import annotations

import errno
import gzip
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.sources import text_tables
from pipelines.sources.files import list_files
from pipelines.sources.importing import import_data
from pipelines.store.schema import write_parquet
from pipelines.store.table import ImageTextStore
from tests.pipelines.sources import layouts
from tests.pipelines.sources.conftest import Ingest

Damage = Callable[[Path], Any]


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:len(content) * 2 // 3])


def flip_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for i in range(len(content) - 60, len(content) - 20):
        content[i] ^= 0xFF
    path.write_bytes(content)


def wrong_magic(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html><body>404: not found</body></html>" * 40)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def latin(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\\u00e9", b"\xe9").replace("é".encode(), b"\xe9"))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.write(path, path.name)
    path.write_bytes(path.with_suffix(".zip").read_bytes())
    path.with_suffix(".zip").unlink()


def no_end(path: Path) -> None:
    """A tar that stops after a whole member: tarfile itself takes that for the end."""
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + b"\0" * (-len(content) % 512))


def header_spoilt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(b".json")  # in the name, with which a header begins
    content[at - at % 512 + 150] ^= 0xFF
    path.write_bytes(content)


def deep(path: Path) -> None:
    nested = b"[" * 20_000 + b"]" * 20_000
    path.write_bytes(path.read_bytes().replace(b'"images": [', b'"images": [' + nested + b", ", 1))


def huge_number(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"writer": 7', b'"writer": ' + b"7" * 5_000, 1))


def twice_named(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"split,image", b"image,image", 1))


def swelling(path: Path) -> None:
    """A few kilobytes that stand for one text of 100 MB."""
    path.write_bytes(gzip.compress(b'image,caption,split\n1.jpg,' + b"x" * 10**8))


CASES: list[tuple[str, Damage, str]] = [
    ("coco", cut, "is cut short or is not JSON .*download it again"),
    ("coco", empty, "is empty .0 bytes.: restore it or download it again"),
    ("coco", wrong_magic, "is not JSON .*name another file, or restore it"),
    ("coco", latin, "is not UTF-8 text .*write it as UTF-8"),
    ("coco", folder_instead, "is a folder: name the file in it"),
    ("coco", zipped, "is a zip archive, not JSON: unpack it"),
    ("karpathy", cut, "is cut short or is not JSON .*download it again"),
    ("flickr30k", latin, "is not UTF-8 text .line .*write it as UTF-8"),
    ("flickr30k", wrong_magic, "its first line is neither .*take source.format=folder"),
    ("nlvr2", cut, "has no whole JSON in line .*download it again"),
    ("nlvr2", folder_instead, "is a folder: name the file in it"),
    ("nlvr2", huge_number, "has no whole JSON in line 1: download it again"),
    ("csv", twice_named, "column 'image' stands there twice; its first line names image, image"),
    ("csv.gz", swelling, "decompresses to more than 100 times its .* bytes: unpack it"),
    ("csv", latin, "is not UTF-8 text .*write it as UTF-8"),
    ("csv", wrong_magic, "column 'image' is missing; its first line names"),
    ("tar", cut, "is not a whole tar .*download this shard again, or remove it"),
    ("tar", no_end, "is not a whole tar .*download this shard again, or remove it"),
    ("tar", header_spoilt, "is not a whole tar .*download this shard again, or remove it"),
    ("tar", wrong_magic, "is not a whole tar .*download this shard again, or remove it"),
    ("tar", empty, "is not a whole tar .*download this shard again, or remove it"),
    ("parquet", cut, "is not a readable Parquet file .*restore it, or remove it and make it again"),
    ("parquet", flip_footer, "is not a readable Parquet file .*restore it, or remove it and make it again"),
    ("parquet", wrong_magic, "is not a readable Parquet file .*restore it, or remove it and make it again"),
    ("parquet", empty, "is not a readable Parquet file .*restore it, or remove it and make it again"),
    ("arrow", cut, "is not a readable Arrow file .*restore it, or remove it and make it again"),
    ("arrow", wrong_magic, "is not a readable Arrow file .*restore it, or remove it and make it again"),
]


def sound(kind: str, root: Path) -> tuple[Path, dict[str, Any]]:
    """A sound data set: the file that is damaged, and the keys that read it."""
    found = layouts.pictures(8)
    foreign = [layouts.Picture(p.number, p.image, p.captions[2:]) for p in found]
    if kind == "coco":
        layouts.coco(root, foreign)
        file = root / "annotations/captions_train2014.json"
        return file, {"format": "coco", "path": file, "images": root}
    if kind == "karpathy":
        layouts.karpathy_coco(root, found)
        return root / "dataset_coco.json", {"format": "karpathy", "path": root / "dataset_coco.json", "images": root}
    if kind == "flickr30k":
        layouts.flickr30k(root, foreign)
        file = root / "results_20130124.token"
        return file, {"format": "flickr30k", "path": file, "images": root / "flickr30k-images", "split": "train"}
    if kind == "nlvr2":
        layouts.nlvr2(root, found)
        file = root / "data/train.json"
        return file, {"format": "nlvr2", "path": file, "images": root / "images"}
    if kind in ("csv", "csv.gz"):
        layouts.captions_file(root, found, "csv")
        file = (root / "captions.csv").rename(root / f"captions.{kind}")
        return file, {"path": root / "pictures", "captions": file, "split": "train"}
    if kind == "arrow":
        file = layouts.write(root / "a.arrow", b"")
        pyarrow.feather.write_feather(pa.table({"image": [p.image for p in found], "caption": ["a"] * 8}), str(file))
        return file, {"format": "parquet", "path": file, "split": "train"}
    if kind == "tar":
        layouts.img2dataset_tars(root / "shards", found, shard=4)
        return root / "shards/00001.tar", {"format": "webdataset", "path": root / "shards", "split": "train"}
    layouts.img2dataset_parquet(root / "shards", found)
    return root / "shards/00001.parquet", {"format": "img2dataset", "path": root / "shards", "split": "train"}


@pytest.mark.parametrize(("kind", "damage", "message"), CASES, ids=[f"{kind}-{d.__name__}" for kind, d, _ in CASES])
def test_a_damaged_file_is_named_with_its_mend(kind: str, damage: Damage, message: str, tmp_path: Path,
                                               ingest: Ingest) -> None:
    file, keys = sound(kind, tmp_path / "data")
    damage(file)
    with pytest.raises(ValueError, match=f"{file}.*{message}") as error:
        ingest(**keys)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    assert not ImageTextStore(tmp_path / "store").exists()
    assert not list((tmp_path / "store").glob("**/*.parquet"))


def test_a_page_of_a_parquet_file_that_is_damaged(tmp_path: Path, ingest: Ingest) -> None:
    file, keys = sound("parquet", tmp_path / "data")
    write_parquet(pq.read_table(file), file)  # with a checksum for each page
    group, content = pq.ParquetFile(file).metadata.row_group(0), bytearray(file.read_bytes())
    pages = {group.column(i).path_in_schema: group.column(i).data_page_offset for i in range(group.num_columns)}
    content[pages["jpg"] + 200] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file} is damaged .*restore it, or remove it and make it again"):
        ingest(**keys, max_bad_share=1)
    assert not ImageTextStore(tmp_path / "store").exists()


def test_a_folder_that_is_missing_is_one_error(tmp_path: Path, ingest: Ingest) -> None:
    _, keys = sound("coco", tmp_path / "data")
    for key, place in (("images", tmp_path / "nowhere"), ("path", tmp_path / "no.json")):
        with pytest.raises(UserError, match=rf"^source.{key}={place} does not exist: name"):
            ingest(**{**keys, key: place})
    with pytest.raises(UserError, match="^source.images is missing: name a folder, source.images=PATH"):
        ingest(**{**keys, "images": ""})
    with pytest.raises(UserError, match="is a file: name the folder"):
        ingest(**{**keys, "images": keys["path"]})
    assert not (tmp_path / "store").exists() and not (tmp_path / "store.quarantine").exists()


def test_a_record_that_is_nested_without_end_is_one_bad_record(tmp_path: Path, ingest: Ingest) -> None:
    file, keys = sound("coco", tmp_path / "data")
    deep(file)
    assert ingest(**keys, max_bad_share=.2).quarantined == {"wrong fields": 1}


def test_a_line_without_an_end_is_not_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tables, "MAX_FIELD", 2**20)
    with (tmp_path / "a.csv").open("wb") as file:
        file.write(b"image,caption\n1.jpg,")
        file.truncate(2**26)
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{tmp_path / 'a.csv'} has a line of over 1,048,576 characters"):
        list(text_tables.table_rows(str(tmp_path / "a.csv"), ",", ("image",)))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write(tmp_path / "sub/1.jpg", b"a")
    plain = os.scandir

    def locked(path: str) -> Any:  # root may read whatever its permissions say
        if str(path).endswith("/sub"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return plain(path)
    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match="sub cannot be read .Permission denied.: mend its permissions"):
        list(list_files(str(tmp_path)))


def test_gzip_is_read_as_it_is(tmp_path: Path, ingest: Ingest) -> None:
    file, keys = sound("csv", tmp_path / "data")
    packed = file.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    assert ingest(**{**keys, "captions": packed}).added == 8


def test_a_store_must_be_named(ray_local: object) -> None:
    from pipelines.sources.config import IngestConfig

    with pytest.raises(UserError, match="data.store is missing"):
        import_data(IngestConfig())
