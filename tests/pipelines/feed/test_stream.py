"""The feed on a real Ray: byte for byte the in-process feed, on any world, from any step; reorders are loud."""
from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
import ray
from ray.data import DataIterator, Dataset

from ashnets.batch import MicroBatch
from pipelines.errors import FinalError
from pipelines.feed.batches import local_batches, micro_batches
from pipelines.feed.order import WindowSlice
from pipelines.feed.plan import FeedPlan
from pipelines.feed.shards import FeedDataConfig, train_batches
from pipelines.feed.source import read_window
from pipelines.feed.stream import build_stream, transform, whole_blocks

from .conftest import MakePlan
from .small_stores import SmallStore, assert_equal, write_groups


def consume(shards: list[DataIterator], plan: FeedPlan, start: int, stop: int) -> list[list[MicroBatch]]:
    """What every rank gets, each in a thread of its own."""
    world = len(shards)

    def rank_batches(rank: int) -> list[MicroBatch]:
        return list(micro_batches(whole_blocks(shards[rank]), plan, start, stop, rank, world))

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(rank_batches, range(world)))


@pytest.mark.parametrize(("world", "start", "stop"), [(1, 0, 8), (2, 8, 11), (3, 11, 14)])
def test_the_stream_is_the_in_process_feed(ray_local: ModuleType, make_plan: MakePlan, world: int, start: int,
                                           stop: int) -> None:
    """A run cut at steps 8 and 11 that goes on with other worlds; 37 groups an epoch, 6 a step: epochs join inside."""
    plan = make_plan()
    config = FeedDataConfig(plan, lambda: start, stop)
    shards = config.configure({"train": None}, world, None, None)
    got = consume([shard["stage 0"] for shard in shards], plan, start, stop)
    for rank in range(world):
        assert_equal(got[rank], list(local_batches(plan, start, stop, rank, world)))


def test_bad_samples_are_replaced_and_counted(ray_local: ModuleType, make_plan: MakePlan, small_store: SmallStore,
                                              tmp_path: Path) -> None:
    rows = copy.deepcopy(small_store.rows[:6])
    rows[2]["images"][1] = b"broken"
    plan = make_plan(write_groups(tmp_path / "bad", rows))
    [shard] = build_stream(plan, 0, 2, 1).streaming_split(1, equal=False)
    got = list(micro_batches(whole_blocks(shard), plan, 0, 2, 0, 1))
    assert [bad for batch in got for bad in batch.bad] == [(rows[2]["sample_ids"][1], "undecodable")] * 2
    assert sum(int((b.weight == 0).sum()) for b in got) == 2
    assert_equal(got, list(local_batches(plan, 0, 2)))


@pytest.mark.parametrize("preserve_order", [True, False])
def test_a_reordered_stream_never_trains(ray_local: ModuleType, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch,
                                         tmp_path: Path, preserve_order: bool) -> None:
    """The first block waits until others are done; without `preserve_order` they overtake it: an error."""
    overtaken = tmp_path / "overtaken"

    def slow_start(task: pa.Table, plan: FeedPlan, rows: int) -> Iterator[pa.Table]:
        if task["position"][0].as_py() == 0:
            deadline = time.monotonic() + 60
            while not overtaken.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(3)  # the others' results are on their way
        yield from transform(task, plan, rows)
        if task["position"][0].as_py() > 0:
            overtaken.touch()

    plan = make_plan()
    monkeypatch.setattr("pipelines.feed.stream.transform", slow_start)
    stream = build_stream(plan, 0, 24, 2)
    stream.context.execution_options.preserve_order = preserve_order
    shards = stream.streaming_split(2, equal=False)
    if preserve_order:
        assert [len(batches) for batches in consume(shards, plan, 0, 24)] == [48, 48]
    else:
        with pytest.raises(FinalError, match="preserve_order off"):
            consume(shards, plan, 0, 24)


def test_a_stream_that_ends_early_is_loud(ray_local: ModuleType, make_plan: MakePlan) -> None:
    plan = make_plan()
    [shard] = build_stream(plan, 0, 2, 1).streaming_split(1, equal=False)
    with pytest.raises(RuntimeError, match="ended early"):
        consume([shard], plan, 0, 3)


def test_the_settings_that_keep_the_order(ray_local: ModuleType, make_plan: MakePlan) -> None:
    plan = make_plan()
    stream: Dataset = build_stream(plan, 0, 2, 2)
    assert stream.context.execution_options.preserve_order
    assert stream.context.target_max_block_size == plan.block_rows(2) * plan.group_bytes()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_task_hands_on_block_after_block(ray_local: ModuleType, make_plan: MakePlan, world: int) -> None:
    """Blocks of 128 groups, several a task: whole ones alone, as many for every rank."""
    plan = make_plan(window=500)
    assert (plan.block_rows(world), plan.task_blocks(world)) == (128, 4)
    stream = build_stream(plan, 0, 100, world)
    rows = [block.num_rows for block in map(ray.get, stream.to_arrow_refs())]
    assert rows == [128] * (-(-100 * plan.step_rows(world) // (128 * world)) * world)


def test_encoded_images_are_read_where_they_lie(ray_local: ModuleType, make_plan: MakePlan, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of four blocks reads its images in the object store, not a copy."""
    def look(task: pa.Table, plan: FeedPlan, rows: int) -> Iterator[pa.Table]:
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "plasma" in line]
        shared = [range(*(int(end, 16) for end in line[0].split("-"))) for line in maps]
        images = [chunk.values.buffers()[2].address for chunk in task["images"].chunks]
        (tmp_path / f"{task['position'][0]}").write_text(
            f"{task.num_rows} {all(any(address in place for place in shared) for address in images)}")
        yield from transform(task, plan, rows)

    monkeypatch.setattr("pipelines.feed.stream.transform", look)
    list(build_stream(make_plan(window=500), 0, 240, 1).to_arrow_refs())
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "0": "512 True", "512": "512 True", "1024": "512 True"}


def test_windows_are_read_by_processes_of_their_own(ray_local: ModuleType, make_plan: MakePlan, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """What transforms does not keep a window's memory."""
    def read(plan: FeedPlan, part: WindowSlice, world: int) -> Iterator[pa.Table]:
        (tmp_path / f"{os.getpid()} reads").touch()
        yield from read_window(plan, part, world)

    def make(task: pa.Table, plan: FeedPlan, rows: int) -> Iterator[pa.Table]:
        (tmp_path / f"{os.getpid()} transforms").touch()
        yield from transform(task, plan, rows)

    monkeypatch.setattr("pipelines.feed.source.read_window", read)
    monkeypatch.setattr("pipelines.feed.stream.transform", make)
    list(build_stream(make_plan(), 0, 24, 2).to_arrow_refs())
    seen = [file.name.split() for file in tmp_path.iterdir() if file.name.endswith(("reads", "transforms"))]
    assert {what for _, what in seen} == {"reads", "transforms"}
    assert len({process for process, _ in seen}) == len(seen)


def test_a_finished_run_asks_ray_for_nothing(make_plan: MakePlan) -> None:
    assert list(train_batches(make_plan(), 4, 4, 0, 2)) == []
