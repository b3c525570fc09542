"""Parquet and Arrow files with named columns, through the real ingest, as different tools write them."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from tests.pipelines.sources import layouts
from tests.pipelines.sources.conftest import Ingest
from tests.pipelines.sources.layouts import Truth

Stored = Callable[[], Truth]
Refused = Callable[[], dict[str, str]]


@pytest.mark.parametrize("kind", ["bytes", "struct", "names"])
def test_parquet_with_named_columns(kind: str, tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    found, truth = layouts.pictures(12), {}
    images: list[object] = [p.image for p in found]
    keys: dict[str, object] = {}
    if kind == "struct":
        images = [{"bytes": p.image, "path": None} for p in found]
    elif kind == "names":
        images = [f"{p.number}.jpg" for p in found]
        for p in found:
            layouts.write(tmp_path / "images" / f"{p.number}.jpg", p.image)
        keys["images"] = tmp_path / "images"
    table = pa.table({"picture": images, "texts": [list(p.captions) for p in found],
                      "part": ["training" if p.number % 2 else "val" for p in found],
                      "uid": [p.number for p in found]})
    (tmp_path / "tables").mkdir()
    pq.write_table(table.slice(0, 7), tmp_path / "tables/a.parquet", row_group_size=3)
    pq.write_table(table.slice(7), tmp_path / "tables/b.parquet")
    truth = {f"mine/{p.number}": (p.image, p.captions, "train" if p.number % 2 else "val") for p in found}
    ingest(format="parquet", path=tmp_path / "tables", name="mine", image_column="picture", caption_column="texts",
           split_column="part", id_column="uid", splits=("training=train",), **keys)
    assert stored() == truth


def test_parquet_with_rows_that_are_no_good(tmp_path: Path, ingest: Ingest, stored: Stored, refused: Refused) -> None:
    p = layouts.pictures(1)[0]
    latin = pa.Array.from_buffers(pa.string(), 4, [None, pa.py_buffer(
        b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3, 4))), pa.py_buffer(b"a\xe9bc")])
    pq.write_table(pa.table({"image": [p.image, p.image, None, p.image], "caption": latin}), tmp_path / "one.parquet",
                   row_group_size=3)
    ingest(format="parquet", path=tmp_path / "one.parquet", split="train", max_bad_share=.5)
    assert set(stored()) == {"parquet/one/0", "parquet/one/3"}
    assert refused() == {"parquet/one/1": "wrong encoding", "parquet/one/2": "missing file"}


@pytest.mark.parametrize("form", ["large_list", "category", "view", "arrow", "feather"])
def test_tables_as_other_tools_write_them(form: str, tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    """polars writes large lists and views, pandas categories; datasets write Arrow streams, pandas Feather files."""
    found = layouts.pictures(12)
    lists = pa.large_list(pa.large_string()) if form == "large_list" else pa.list_(pa.string())
    text = pa.string_view() if form == "view" else pa.string()
    split = pa.array(["train", "val"] * 6, text)
    table = pa.table({
        "image": pa.array([p.image for p in found], pa.binary_view() if form == "view" else pa.binary()),
        "caption": (pa.array([p.captions[0] for p in found], text) if form == "view" else
                    pa.array([p.captions for p in found], lists)),
        "split": split.dictionary_encode() if form == "category" else split,
        "uid": pa.array([f"n{p.number}" for p in found], text)})
    (tmp_path / "tables").mkdir()
    for name, part in (("a", table.slice(0, 7)), ("b", table.slice(7))):
        if form == "arrow":
            with pa.OSFile(str(tmp_path / f"tables/{name}.arrow"), "wb") as out, pa.ipc.new_stream(
                    out, part.schema) as writer:
                writer.write_table(part, max_chunksize=3)
        elif form == "feather":
            pyarrow.feather.write_feather(part, str(tmp_path / f"tables/{name}.feather"), chunksize=3)
        else:
            pq.write_table(part, tmp_path / f"tables/{name}.parquet", row_group_size=3)
    report = ingest(format="parquet", path=tmp_path / "tables", split_column="split", id_column="uid")
    assert report.added == 12 and report.quarantined == {}
    assert stored() == {f"parquet/n{p.number}": (p.image, p.captions[:1] if form == "view" else p.captions,
                                                 ("train", "val")[i % 2]) for i, p in enumerate(found)}


def test_arrow_rows_without_ids_are_numbered_and_bad_ones_refused(tmp_path: Path, ingest: Ingest, stored: Stored,
                                                                  refused: Refused) -> None:
    p = layouts.pictures(1)[0]
    table = pa.table({"image": [p.image, None, p.image[:-100], p.image], "caption": ["a", "b", "c", ""]})
    pyarrow.feather.write_feather(table, str(tmp_path / "one.feather"))
    ingest(format="parquet", path=tmp_path / "one.feather", split="train", max_bad_share=1)
    assert set(stored()) == {"parquet/one.feather/0"} and refused() == {
        "parquet/one.feather/1": "missing file", "parquet/one.feather/2": "truncated",
        "parquet/one.feather/3": "empty caption"}


def test_parquet_whose_columns_do_not_fit_is_told_before_a_row_is_read(tmp_path: Path, ingest: Ingest) -> None:
    p = layouts.pictures(1)[0]
    fine = {"image": [p.image], "caption": ["a"], "split": ["train"], "uid": ["1"]}
    for name, column, said in (("split", [1], "expected text"), ("uid", [1.5], "expected text or whole numbers"),
                               ("caption", [[["a"]]], "expected text or a list of texts"),
                               ("image", ["a.jpg"], "name their folder by source.images")):
        pq.write_table(pa.table({**fine, name: column}), tmp_path / "one.parquet")
        with pytest.raises(UserError, match=f"one.parquet: column '{name}' has type .*{said}"):
            ingest(format="parquet", path=tmp_path / "one.parquet", split_column="split", id_column="uid")
    names = ["image", "caption", "caption"]
    twice = pa.Table.from_arrays([pa.array([p.image]), pa.array(["a"]), pa.array(["b"])], names)
    pq.write_table(twice, tmp_path / "one.parquet")
    with pytest.raises(UserError, match="one.parquet: 2 columns have the name 'caption': give each its own"):
        ingest(format="parquet", path=tmp_path / "one.parquet", split="train")
