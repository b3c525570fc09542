"""Ingest with Ray Data: everything good arrives bit for bit, everything bad is counted, and all or nothing appears."""
from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.config import DataConfig
from pipelines.sources.emoji import emoji_of_split
from pipelines.sources.record import Rejected, Sample
from pipelines.sources.scenes import ScenesSource
from pipelines.store.attempts import LOCKS
from pipelines.store.ingest import batch_id_of, ingest, ingest_demo
from pipelines.store.quarantine import quarantine_path, read_quarantine
from pipelines.store.table import ImageTextStore

SMALL = DataConfig(source="scenes", scenes=40, scenes_val=8)


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


@dataclass(frozen=True)
class Numbers:
    """Random pictures with a number each; `bad` of every kind are spoilt, all in their own part."""

    good: int = 60
    bad: int = 0
    crash_in_part: int = -1

    name = "numbers"
    kinds = ("empty caption", "not an image", "truncated", "too many pixels", "missing file", "duplicate id")

    @property
    def settings(self) -> dict[str, Any]:
        return {"good": self.good, "bad": self.bad, "crash": self.crash_in_part}

    @property
    def parts(self) -> int:
        return 3 + (self.bad > 0)

    def read(self, part: int) -> Iterator[Sample | Rejected]:
        for i in range(part, self.good, 3) if part < 3 else ():
            if part == self.crash_in_part and i > self.good // 2:
                raise RuntimeError("the source fell over")
            yield self.sample(i)
        if part == 3:
            for i in range(self.bad):
                yield from self.spoilt(i)

    def sample(self, i: int) -> Sample:
        return Sample(f"numbers/{i:04d}", "train" if i % 4 else "val", jpeg(i), (f"number {i}", "noise"), {"n": i})

    def spoilt(self, i: int) -> Iterator[Sample | Rejected]:
        large = io.BytesIO()
        Image.new("1", (101, 100)).save(large, "PNG")
        yield Sample(f"numbers/empty{i}", "train", jpeg(i), (" ",))
        yield Sample(f"numbers/text{i}", "train", b"no image", ("a",))
        yield Sample(f"numbers/cut{i}", "train", jpeg(i)[:-60], ("a",))
        yield Sample(f"numbers/large{i}", "train", large.getvalue(), ("a",))
        yield Rejected(f"numbers/gone{i}.jpg", "missing file")
        yield Sample(f"numbers/{i:04d}", "train", jpeg(10_000 + i), ("another picture",))


@pytest.fixture(scope="module", autouse=True)
def _sources_travel_to_the_workers(ray_local: ModuleType) -> None:
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def content(path: Path) -> list[dict[str, Any]]:
    return pa.Table.from_batches(ImageTextStore(path).iter_batches()).to_pylist()


def parquet_files(path: Path) -> set[str]:
    return {str(file) for file in path.rglob("*") if file.is_file() and not {"_delta_log", LOCKS} & set(file.parts)}


def test_the_demo_holds_emoji_and_scenes_and_no_unseen_emoji_in_training(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    data = DataConfig(scenes=40, scenes_val=8)
    report = ingest_demo(data, tmp_path / "demo", lambda *told: seen.append(told))
    unseen = {f"emoji/{emoji.code}" for emoji in emoji_of_split("unseen", 0)}
    assert report.rows_by_split == {"train": 1632 - len(unseen) + 40, "unseen": len(unseen), "val": 8}
    assert report.added == 1632 + 48 and report.quarantined == {}
    assert seen[-1][1] == seen[-1][2] and sorted(seen) == seen

    rows = content(tmp_path / "demo")
    assert {row["sample_id"] for row in rows if row["split"] == "unseen"} == unseen
    classes = {split: {r["image_class"] for r in rows if r["split"] == split} for split in ("train", "val", "unseen")}
    assert classes["train"].isdisjoint(classes["unseen"]) and classes["train"].isdisjoint(classes["val"])
    assert {row["source"] for row in rows} == {"emoji", "scenes"}
    # 30 families share four drawings, so 26 emoji have a picture that another has too.
    assert len(set.union(*classes.values())) == 1632 - 26 + 48


def test_good_rows_arrive_bit_for_bit_and_bad_ones_are_counted_by_reason(tmp_path: Path) -> None:
    source, store = Numbers(good=200, bad=50), tmp_path / "store"
    report = ingest([source], DataConfig(max_pixels=10_000, max_bad_share=.7), store)
    assert report.quarantined == dict.fromkeys(Numbers.kinds, 50)
    assert report.added == 200 and report.rows_by_split == {"train": 150, "val": 50}

    expected = {sample.sample_id: sample for sample in map(source.sample, range(200))}
    rows = content(store)
    assert len(rows) == 200
    for row in rows:
        sample = expected.pop(row["sample_id"])
        assert (row["image"], row["split"], tuple(row["captions"])) == (sample.image, sample.split, sample.captions)
        assert (row["width"], row["height"], row["batch_id"]) == (16, 16, batch_id_of(
            [source], DataConfig(max_pixels=10_000)))
    refused = read_quarantine(store).to_pylist()
    assert len(refused) == 300 and {row["source"] for row in refused} == {"numbers"}
    assert {row["reference"] for row in refused if row["reason"] == "missing file"} == {
        f"numbers/gone{i}.jpg" for i in range(50)}


def test_too_many_bad_rows_append_nothing_and_say_so(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(ValueError, match=r"6 of 66 records are bad \(1 .*max_bad_share=0.01: nothing was appended"):
        ingest([Numbers(good=60, bad=1)], DataConfig(max_pixels=10_000), store)
    assert not ImageTextStore(store).exists() and not parquet_files(store)
    assert read_quarantine(store).num_rows == 6

    ingest([Numbers()], DataConfig(), store)
    before = content(store)
    with pytest.raises(ValueError, match="nothing was appended"):
        ingest([Numbers(good=90, bad=30)], DataConfig(max_pixels=10_000), store)
    assert content(store) == before and parquet_files(store) == set(ImageTextStore(store).files())

    ingest([Numbers(good=60, bad=1)], DataConfig(max_pixels=10_000, max_bad_share=.1), store)
    assert read_quarantine(store, batch_id_of([Numbers(60, 1)], DataConfig(max_pixels=10_000))).num_rows == 6


def test_the_same_ingest_again_adds_nothing_and_needs_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ingest_demo(SMALL, tmp_path / "store")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    again = ingest_demo(SMALL, tmp_path / "store")
    assert first.added == 48 and again.added == 0
    assert (again.version, again.rows_by_split) == (first.version, first.rows_by_split)


def test_growing_a_store_adds_what_is_new(tmp_path: Path) -> None:
    ingest_demo(SMALL, tmp_path / "grown")
    report = ingest_demo(replace(SMALL, scenes=60), tmp_path / "grown")
    assert report.added == 20 and report.quarantined == {} and report.rows_by_split == {"train": 60, "val": 8}
    ingest_demo(replace(SMALL, scenes=60), tmp_path / "whole")

    def known(path: Path) -> list[dict[str, Any]]:
        return sorted(({**row, "batch_id": ""} for row in content(path)), key=lambda row: row["sample_id"])
    assert known(tmp_path / "grown") == known(tmp_path / "whole")


def test_another_seed_in_the_same_store_is_refused(tmp_path: Path) -> None:
    ingest_demo(SMALL, tmp_path / "store")
    with pytest.raises(ValueError, match="48 of 48 records are bad .48 duplicate id"):
        ingest_demo(replace(SMALL, seed=1), tmp_path / "store")


def test_two_ingests_give_equal_stores_in_equal_order(tmp_path: Path) -> None:
    data = replace(SMALL, scenes=1200)
    for name in ("one", "two"):
        ingest_demo(data, tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(ImageTextStore(tmp_path / "one").files()) == ScenesSource(1200, 8).parts == 4
    ids = [row["sample_id"] for row in content(tmp_path / "one")]
    assert ids == sorted(ids) and len(ids) == 1208


def test_a_source_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(Exception, match="the source fell over"):
        ingest([Numbers(crash_in_part=2)], DataConfig(), store)
    assert not ImageTextStore(store).exists() and not parquet_files(store)
    assert not quarantine_path(store).exists()


def test_a_batch_is_known_by_everything_that_decides_its_rows() -> None:
    base = batch_id_of([ScenesSource()], DataConfig())
    assert base.startswith("scenes-") and base == batch_id_of([ScenesSource()], DataConfig(max_bad_share=.5))
    others = {batch_id_of([source], data) for source, data in [
        (ScenesSource(seed=1), DataConfig()), (ScenesSource(train=1), DataConfig()),
        (ScenesSource(side=32), DataConfig()), (ScenesSource(), DataConfig(max_pixels=5))]}
    assert len(others | {base}) == 5
