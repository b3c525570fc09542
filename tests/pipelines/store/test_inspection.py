"""The inspection counts what a plain loop counts, and its page and sheet show the samples."""
from __future__ import annotations

import base64
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.inspect import main
from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.report.store_page import GAP, PAGE, SHEET, TILE, contact_sheet, write_inspection
from pipelines.sources.record import Sample
from pipelines.store.inspection import Inspection, inspect, told
from pipelines.store.quarantine import QUARANTINE_SCHEMA, write_quarantine
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore
from pipelines.store.validate import to_row

COLOURS = np.random.default_rng(0).integers(0, 256, (40, 3), np.uint8)


def sample(source: str, number: int) -> Sample:
    """A picture of one colour and its own size, with one to three captions of as many words."""
    out = io.BytesIO()
    pixels = np.broadcast_to(COLOURS[number], (20 + number, 100, 3))
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    captions = tuple(" ".join(["word"] * (k + 1 + number)) for k in range(1 + number % 3))
    return Sample(f"{source}/{number:02d}", "val" if number % 5 == 0 else "train", out.getvalue(), captions)


@pytest.fixture()
def store(tmp_path: Path) -> Path:
    path = tmp_path / "a <b> store"
    for batch, source, numbers in (("one", "emoji", range(30)), ("two", "mine", range(30, 40))):
        rows = [to_row(sample(source, number), source, batch, DataConfig()) for number in numbers]
        ImageTextStore(path).append([pa.Table.from_pylist(rows, STORE_SCHEMA)], batch, {"duplicates": '{"near": 3}'})
    refused = [{"batch_id": batch, "source": "mine", "reference": f"<{number}>.jpg", "reason": reason}
               for batch, reason, count in (("two", "truncated", 3), ("two", "<script>", 1), ("three", "truncated", 2))
               for number in range(count)]
    for batch in ("two", "three"):
        write_quarantine(path, batch, [pa.Table.from_pylist(
            [row for row in refused if row["batch_id"] == batch], QUARANTINE_SCHEMA)])
    return path


def test_everything_is_counted(store: Path) -> None:
    found = inspect(store, samples=10)
    samples = [sample("emoji" if number < 30 else "mine", number) for number in range(40)]
    assert found.rows == dict(sorted(Counter((s.sample_id.split("/")[0], s.split) for s in samples).items()))
    words = Counter(len(caption.split()) for s in samples for caption in s.captions)
    assert {i: count for i, count in enumerate(found.words.tolist()) if count} == words
    assert found.captions.tolist()[:4] == [0, 14, 13, 13]
    assert sorted(found.heights.tolist()) == list(range(20, 60)) and set(found.widths.tolist()) == {100}
    assert [(one.batch_id, one.rows, one.duplicates) for one in found.versions] == [
        ("one", 30, {"near": 3}), ("two", 10, {"near": 3})]
    assert [one.number for one in found.versions] == [found.version - 1, found.version]
    assert [(one.batch_id, one.reason, one.count, one.example, one.committed) for one in found.refused] == [
        ("three", "truncated", 2, "<0>.jpg", False), ("two", "truncated", 3, "<0>.jpg", True),
        ("two", "<script>", 1, "<0>.jpg", True)]


def test_samples_are_drawn_evenly_and_the_same_by_the_same_seed(store: Path) -> None:
    found = inspect(store, samples=10)
    assert Counter((one.source, one.split) for one in found.shown) == {
        ("emoji", "train"): 3, ("emoji", "val"): 3, ("mine", "train"): 2, ("mine", "val"): 2}
    for one in found.shown:
        expected = sample(one.source, int(one.sample_id[-2:]))
        assert (one.image, one.captions, one.split) == (expected.image, expected.captions, expected.split)
    assert inspect(store, samples=10).shown == found.shown != inspect(store, samples=10, seed=1).shown
    assert len(inspect(store, samples=1000).shown) == 40


def tiles(found: Inspection) -> list[np.ndarray]:
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(found.shown))))
    down, across = ((length - GAP) // (TILE + GAP) for length in sheet.shape[:2])
    centres = [GAP + TILE // 2 + i * (TILE + GAP) for i in range(max(down, across))]
    return [sheet[y, x] for y in centres[:down] for x in centres[:across]]


def test_the_sheet_and_the_page_show_every_drawn_sample(store: Path, tmp_path: Path) -> None:
    found = inspect(store, samples=10)
    colours = [COLOURS[int(one.sample_id[-2:])] for one in found.shown]
    assert np.array_equal(tiles(found)[:10], colours)
    write_inspection(found, tmp_path / "to")
    page = (tmp_path / "to" / PAGE).read_text()
    assert Image.open(tmp_path / "to" / SHEET).format == "PNG"
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
                for data in re.findall(r"data:image/webp;base64,([^\"]+)", page)]
    assert len(pictures) == 10
    for picture, colour in zip(pictures, colours, strict=True):
        assert np.abs(picture[5, 5].astype(int) - colour).max() < 12
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page.replace("http://www.w3.org", "")


def test_the_job_prints_it_all_and_names_a_store_that_is_not_there(store: Path, tmp_path: Path,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    main([f"data.store={store}", f"to={tmp_path / 'to'}"])
    out = capsys.readouterr().out
    assert all(line in out for line in told(inspect(store)))
    assert "3 truncated" in out and "2 truncated (such as <0>.jpg; batch three, not in the store)" in out
    assert (tmp_path / "to" / PAGE).exists() and (tmp_path / "to" / SHEET).exists()
    with pytest.raises(UserError, match="data.store=.*nowhere: there is no image-text store here"):
        main([f"data.store={tmp_path / 'nowhere'}"])
