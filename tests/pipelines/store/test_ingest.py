"""Ingest with Ray Data: everything good arrives bit for bit, everything bad is counted, and all or nothing appears."""
from __future__ import annotations

import errno
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
from pipelines.errors import UserError
from pipelines.sources.emoji import emoji_of_split
from pipelines.sources.record import Rejected, Sample
from pipelines.sources.scenes import ScenesSource
from pipelines.store import ingest as stage
from pipelines.store.attempts import LOCKS, alone, attempt_at, file_name, remove_orphans
from pipelines.store.ingest import batch_id_of, demo_sources, ingest, ingest_demo
from pipelines.store.quarantine import quarantine_path, read_quarantine, refusal
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
    kinds = ("empty caption", "caption too long", "wrong encoding", "empty file", "not an image", "truncated",
             "broken image", "too many pixels", "missing file", "unsafe name", "failed download", "duplicate id")

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
        large, flipped = io.BytesIO(), io.BytesIO()
        Image.new("1", (101, 100)).save(large, "PNG")
        Image.open(io.BytesIO(jpeg(i))).save(flipped, "PNG")
        yield Sample(f"numbers/empty{i}", "train", jpeg(i), (" ",))
        yield Sample(f"numbers/long{i}", "train", jpeg(i), ("x" * 10_001,))
        yield Sample(f"numbers/half{i}", "train", jpeg(i), ("half of a pair: \ud83d",))
        yield Sample(f"numbers/nothing{i}", "train", b"", ("a",))
        yield Sample(f"numbers/text{i}", "train", b"no image", ("a",))
        yield Sample(f"numbers/cut{i}", "train", jpeg(i)[:-60], ("a",))
        yield Sample(f"numbers/flipped{i}", "train", flipped.getvalue().replace(b"IDATx", b"IDATy"), ("a",))
        yield Sample(f"numbers/large{i}", "train", large.getvalue(), ("a",))
        yield Rejected(f"numbers/gone{i}.jpg", "missing file", "x" * 10_000)
        yield Rejected(f"../{i}\udcff.jpg", "unsafe name")
        yield Rejected(f"numbers/{i}", "failed download", "HTTP 404")
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
    report = ingest([source], DataConfig(max_pixels=10_000, max_bad_share=.8), store)
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
    assert len(refused) == 600 and {row["source"] for row in refused} == {"numbers"}
    assert {row["reference"] for row in refused if row["reason"] == "missing file"} == {
        f"numbers/gone{i}.jpg" for i in range(50)}
    assert max(len(row["detail"]) for row in refused) == 500


def test_too_many_bad_rows_append_nothing_and_say_so(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(ValueError, match=r"12 of 72 records are bad \(1 .*max_bad_share=0.01: nothing was appended"):
        ingest([Numbers(good=60, bad=1)], DataConfig(max_pixels=10_000), store)
    assert not ImageTextStore(store).exists() and not parquet_files(store)
    assert read_quarantine(store).num_rows == 12

    ingest([Numbers()], DataConfig(), store)
    before = content(store)
    with pytest.raises(ValueError, match="nothing was appended"):
        ingest([Numbers(good=90, bad=30)], DataConfig(max_pixels=10_000), store)
    assert content(store) == before and parquet_files(store) == set(ImageTextStore(store).files())

    ingest([Numbers(good=60, bad=1)], DataConfig(max_pixels=10_000, max_bad_share=.2), store)
    assert read_quarantine(store, batch_id_of([Numbers(60, 1)], DataConfig(max_pixels=10_000))).num_rows == 12


def test_a_source_without_a_record_or_without_a_good_one_is_told(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(UserError, match=f"the source holds no record: nothing was appended to {store}; look at"):
        ingest([Numbers(good=0)], DataConfig(), store)
    with pytest.raises(UserError, match="none of 12 records is good .*nothing was appended to .*parquet lists them"):
        ingest([Numbers(good=0, bad=1)], DataConfig(max_pixels=100, max_bad_share=1), store)
    assert not ImageTextStore(store).exists() and read_quarantine(store).num_rows == 12


def test_the_quarantine_holds_nothing_that_a_terminal_obeys() -> None:
    row = refusal("batch", "s", Rejected("s/\x1b[2J\n\x9b\udcff ü", "missing file", "x" * 600))
    assert row["reference"] == "s/\\x1b[2J\\n\\x9b\\udcff ü" and row["detail"] == "x" * 500


def test_a_piece_is_bounded_by_all_that_its_rows_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may hold a long caption once and repeat it in every row."""
    monkeypatch.setattr(stage, "FILE_BYTES", 50_000)
    sizes = [sum(len(text) for row in rows for text in row["captions"])
             for rows, _ in stage._pieces(Wordy(), 0, "batch", DataConfig())]
    assert sum(sizes) == 40 * 9_000 and max(sizes) <= 50_000 + 9_000


class Wordy:
    name, settings, parts = "wordy", {"a": 1}, 1

    def read(self, part: int) -> Iterator[Sample]:
        for i in range(40):
            yield Sample(f"wordy/{i}", "train", jpeg(1), ("x" * 9_000,))


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


@dataclass(frozen=True)
class Rows:
    """One part with the pictures of these numbers, some shrunk, under ids and splits as given."""

    rows: tuple[tuple[str, str, int, bool], ...]
    name: str = "rows"

    parts = 1

    @property
    def settings(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def read(self, part: int) -> Iterator[Sample]:
        for name, split, number, shrunk in self.rows:
            small = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
            large = Image.fromarray(small).resize((200, 160))
            out = io.BytesIO()
            (large.resize((120, 96)) if shrunk else large).save(out, "PNG")
            yield Sample(f"{self.name}/{name}", split, out.getvalue(), (name,))


TWINS = (("a", "train", 1, False), ("b", "train", 1, False), ("c", "val", 2, False), ("d", "train", 2, False),
         ("e", "train", 3, True), ("f", "train", 3, False), ("g", "val", 4, True), ("h", "train", 4, False),
         ("i", "val", 2, False), ("j", "train", 5, False))


@pytest.mark.parametrize("mode,dropped", [("keep", ""), ("drop_exact", "bd"), ("drop_near", "bdfh")])
def test_copies_are_counted_and_dropped_from_training_as_configured(mode: Any, dropped: str, tmp_path: Path) -> None:
    store, data = tmp_path / "store", DataConfig(duplicates=mode, max_bad_share=0)
    report = ingest([Rows(TWINS)], data, store)
    assert report.duplicates == {"exact": 3, "near": 2, "leaked": 0}  # b, d, i; f, h
    assert {row["sample_id"][-1] for row in content(store)} == set("abcdefghij") - set(dropped)
    assert sum(report.quarantined.values()) == len(dropped)
    again = ingest([Rows(TWINS)], data, store)
    assert again.added == 0 and (again.duplicates, again.quarantined) == (report.duplicates, report.quarantined)


def test_copies_are_found_across_ingests_and_never_cost_an_evaluation_its_rows(tmp_path: Path) -> None:
    store, data = tmp_path / "store", DataConfig(duplicates="drop_near")
    ingest([Rows((("a", "train", 1, False), ("b", "val", 2, False)))], data, store)
    later = Rows((("c", "train", 2, True), ("d", "val", 1, True), ("e", "train", 1, False)), "later")
    report = ingest([later], data, store)
    assert report.duplicates == {"exact": 1, "near": 2, "leaked": 1}
    assert {row["sample_id"] for row in content(store)} == {"rows/a", "rows/b", "later/d"}


def test_built_in_sources_are_not_compared(tmp_path: Path) -> None:
    report = ingest([Rows(TWINS, "emoji")], DataConfig(duplicates="drop_near"), tmp_path / "store")
    assert report.added == len(TWINS) and report.duplicates == {}
    assert "phash" not in content(tmp_path / "store")[0]["metadata"]


def test_only_files_that_no_living_attempt_can_own_are_removed(tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path / "store")
    ingest_demo(SMALL, store.path)
    before = parquet_files(store.path)
    ours = store.path / "other.parquet"
    dead = [store.path / "scenes-00-000001-0000-deadbeef.parquet",
            store.path / ".scenes-00-000002-0000-deadbeef.parquet.0123abcd.tmp"]
    with attempt_at(store) as living:
        alive = [store.path / file_name("scenes-00", 1, 0, living), store.path / f".scenes-00-000002-0000-{living}"
                 ".parquet.0123abcd.tmp"]
        for file in (ours, *dead, *alive):
            file.write_bytes(b"half a file")
        (store.path / LOCKS / "deadbeef.lock").touch()
        with alone(store.path):
            assert set(remove_orphans(store, store.path)) == set(dead)
        assert parquet_files(store.path) == before | {str(file) for file in (ours, *alive)}
    assert parquet_files(store.path) == before | {str(ours)}


@pytest.mark.parametrize("step", ["rows", "log"])
def test_a_full_disk_is_told_in_one_line_and_the_same_ingest_goes_on_when_there_is_space(
        step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    ingest_demo(SMALL, store)
    before = content(store), parquet_files(store)
    more = replace(SMALL, scenes=60)
    with monkeypatch.context() as patch:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")
        if step == "rows":
            patch.setattr("pipelines.store.duplicates.write_parquet", full)
        else:
            patch.setattr(ImageTextStore, "_commit", full)
        with pytest.raises(UserError, match="the disk of .*store is full: nothing was appended.*free some space"):
            ingest_demo(more, store)
    assert (content(store), parquet_files(store)) == before
    assert ingest_demo(more, store).added == 20


def test_a_task_tells_a_mistake_of_the_users_and_a_full_disk(tmp_path: Path) -> None:
    for error, said in ((UserError("the folder is empty: fill it"), "the folder is empty: fill it"),
                        (OSError(errno.ENOSPC, "No space left on device"), "the disk of .* is full")):
        with pytest.raises(UserError, match=said):
            ingest([Failing(error)], DataConfig(), tmp_path / "store")
    assert not parquet_files(tmp_path / "store")


@dataclass(frozen=True)
class Failing:
    error: Exception

    name, settings, parts = "failing", {"a": 1}, 1

    def read(self, part: int) -> Iterator[Sample]:
        yield Sample("failing/1", "train", jpeg(1), ("a",))
        raise self.error


def test_a_batch_is_known_by_everything_that_decides_its_rows() -> None:
    base = batch_id_of([ScenesSource()], DataConfig())
    assert base.startswith("scenes-") and base == batch_id_of([ScenesSource()], DataConfig(max_bad_share=.5))
    others = {batch_id_of([source], data) for source, data in [
        (ScenesSource(seed=1), DataConfig()), (ScenesSource(train=1), DataConfig()),
        (ScenesSource(side=32), DataConfig()), (ScenesSource(), DataConfig(max_pixels=5)),
        *((ScenesSource(), DataConfig(**{key: value})) for key, value in (  # type: ignore[arg-type]
            ("encode", "jpeg"), ("quality", 80), ("short_side", 32), ("max_caption", 9), ("duplicates", "drop_near")))]}
    assert len(others | {base}) == 10
    assert batch_id_of(demo_sources(DataConfig()), DataConfig()) == "emoji-scenes-d8d3569ca3c9aad7"
