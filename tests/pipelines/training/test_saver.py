"""Checkpoints beside the step loop: what they hold, one at a time, errors that surface, a full disk."""
from __future__ import annotations

import errno
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.config import CheckpointConfig, PretrainConfig
from pipelines.errors import UserError
from pipelines.feed.plan import feed_plan
from pipelines.resume import config_hash
from pipelines.training import checkpoint, retention, saver, snapshot
from pipelines.training.job import TrainingJob
from pipelines.training.lease import Lease
from pipelines.training.saver import Saver
from pipelines.training.snapshot import to_host

MIB = 2**20


class SmallEngine:
    """An engine of one tensor and one number, as DeepSpeed gives them out: the live ones."""

    device = torch.device("cpu")

    def __init__(self, count: int = 1000) -> None:
        self.state = {"weights": torch.zeros(count), "step": 0}

    def train(self, step: int) -> None:
        self.state["weights"] += 1
        self.state["step"] = step

    def snapshot(self, folder: Path) -> snapshot.Shards:
        (folder / "state").mkdir()
        return {folder / "state" / "all.pt": to_host(self.state)}


def make_job(run: Path, attempt: int, **keep: int) -> TrainingJob:
    config = PretrainConfig(checkpoint=CheckpointConfig(**keep))
    return TrainingJob(config=config, run=run, attempt=attempt, plan=feed_plan(config, ""), store=run, store_version=0,
                       groups=10, schedule_steps=100, stop_step=100, device="cpu")


def newest_step(run: Path) -> int:
    return checkpoint.newest(run)[1].step


def saved(run: Path) -> dict:
    return torch.load(checkpoint.newest(run)[0] / "state" / "all.pt", weights_only=True)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Shards are written only once this is set."""
    event = threading.Event()

    def wait_and_write(shards: snapshot.Shards) -> None:
        assert event.wait(30)
        snapshot.write(shards)

    monkeypatch.setattr(saver, "write", wait_and_write)
    return event


def test_a_checkpoint_holds_the_moment_of_its_step_though_training_goes_on(tmp_path, gate):
    engine = SmallEngine()
    with Lease(tmp_path) as lease:
        job = make_job(tmp_path, lease.attempt)
        saving = Saver(engine, job, rank=0, world=1)
        engine.train(1)
        saving.save(1, seconds=2.5, score=0.25)
        assert checkpoint.newest(tmp_path) is None, "the step loop does not wait"
        for step in range(2, 6):
            engine.train(step)
            saving.check()
        gate.set()
        saving.wait()
    state, manifest = saved(tmp_path), checkpoint.newest(tmp_path)[1]
    assert state["step"] == 1 and torch.equal(state["weights"], torch.ones(1000))
    assert (manifest.step, manifest.position, manifest.seconds, manifest.score) == (1, job.position(1), 2.5, 0.25)
    assert manifest.config_hash == config_hash(job.config) and manifest.code_version.startswith("0.")
    assert str(Path.home()) not in json.dumps(vars(manifest)) and str(tmp_path) not in json.dumps(vars(manifest))


def test_one_checkpoint_at_a_time_is_on_its_way(tmp_path, gate):
    engine = SmallEngine()
    with Lease(tmp_path) as lease:
        saving = Saver(engine, make_job(tmp_path, lease.attempt), rank=0, world=1)
        saving.save(1, 1.0)
        second = threading.Thread(target=saving.save, args=(2, 1.0))
        second.start()
        second.join(0.3)
        assert second.is_alive(), "the second waits for the first"
        gate.set()
        second.join(30)
        saving.wait()
    assert [folder.name for folder in checkpoint.folders(tmp_path)] == ["step-00000001", "step-00000002"]


def test_retention_comes_with_every_commit(tmp_path):
    engine = SmallEngine()
    with Lease(tmp_path) as lease:
        saving = Saver(engine, make_job(tmp_path, lease.attempt, keep=1), rank=0, world=1)
        for step, score in ((1, 0.5), (2, 0.4), (3, None), (4, None)):
            saving.save(step, 1.0, score)
        saving.wait()
    assert [folder.name for folder in checkpoint.folders(tmp_path)] == ["step-00000001", "step-00000004"]


def test_what_goes_wrong_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch):
    engine = SmallEngine()
    with Lease(tmp_path) as lease:
        saving = Saver(engine, make_job(tmp_path, lease.attempt), rank=0, world=1)
        saving.save(1, 1.0)
        saving.wait()
        monkeypatch.setattr(saver, "write", lambda shards: (_ for _ in ()).throw(OSError(errno.EIO, "broken disk")))
        saving.save(2, 1.0)
        saving._thread.join()
        for call in (saving.check, saving.wait, lambda: saving.save(3, 1.0)):
            with pytest.raises(OSError, match="broken disk"):
                call()
    assert newest_step(tmp_path) == 1 and not list((tmp_path / "checkpoints").glob(".tmp*"))


def test_a_rank_that_never_writes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "OTHER_RANKS_S", 0.2)
    monkeypatch.setattr(saver, "dist", SimpleNamespace(barrier=lambda: None, all_reduce=lambda *_, **__: None,
                                                       ReduceOp=torch.distributed.ReduceOp))
    with Lease(tmp_path) as lease:
        saving = Saver(SmallEngine(), make_job(tmp_path, lease.attempt), rank=0, world=2)
        saving.save(1, 1.0)
        with pytest.raises(TimeoutError, match="rank-1 did not write"):
            saving.wait()


def test_a_copy_shares_no_memory_and_takes_no_more_than_it_holds():
    flat = torch.arange(1000.0)
    module = torch.nn.BatchNorm1d(3)
    state = {"view": flat[10:20], "list": [flat, (flat[:2], "text")], "model": module.state_dict(), "shape": flat.shape}
    copied = to_host(state)
    flat.fill_(-1)
    assert torch.equal(copied["view"], torch.arange(10.0, 20.0)) and copied["view"].untyped_storage().nbytes() == 40
    assert torch.equal(copied["list"][0], torch.arange(1000.0)) and copied["list"][1][1] == "text"
    assert copied["model"]._metadata == module.state_dict()._metadata and copied["shape"] == torch.Size([1000])


# A full disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_written(small_disk):
    """10 MiB each, 16 MiB stay free: four fit into 64 MiB."""
    engine, run = SmallEngine(count=10 * MIB // 4), small_disk / "run"
    with Lease(run) as lease:
        saving = Saver(engine, make_job(run, lease.attempt, keep=9), rank=0, world=1)
        for step in (1, 2, 3, 4):
            saving.save(step, 1.0)
        with pytest.raises(UserError, match=r"step 5: it needs 10485760 bytes \(10 MiB\).* continues from step 4"):
            saving.save(5, 1.0)
    with Lease(run) as lease:  # the same command again, with space
        assert checkpoint.resume_point(run, lease.attempt)[1].step == 4
        saving = Saver(engine, make_job(run, lease.attempt, keep=1), rank=0, world=1)
        retention.retain(run, keep=1, keep_best=0, read=checkpoint.ReadOnce())
        saving.save(5, 1.0)
        saving.wait()
    assert newest_step(run) == 5


@pytest.mark.parametrize("tenth", range(10))
def test_a_disk_that_fills_while_a_checkpoint_is_written(small_disk, monkeypatch, tenth):
    """Something else takes the space after the check: the disk is full at `tenth` tenths of the file."""
    engine, run = SmallEngine(count=10 * MIB // 4), small_disk / "run"
    with Lease(run) as lease:
        saving = Saver(engine, make_job(run, lease.attempt), rank=0, world=1)
        saving.save(1, 1.0)
        saving.wait()
        free = retention.free_bytes(run) + retention.RESERVE
        monkeypatch.setattr(saver, "free_bytes", lambda run: 2**40)
        (small_disk / "other").write_bytes(bytes(free - tenth * MIB - 64 * 1024))
        saving.save(2, 1.0)
        with pytest.raises(UserError, match=r"no space for the checkpoint of step 2: .* continues from step 1"):
            saving.wait()
        assert newest_step(run) == 1 and not list((run / "checkpoints").glob(".tmp*"))
        (small_disk / "other").unlink()
    with Lease(run) as lease:
        saving = Saver(engine, make_job(run, lease.attempt), rank=0, world=1)
        saving.save(2, 1.0)
        saving.wait()
    assert newest_step(run) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_is_told_with_figures(tmp_path, monkeypatch, code):
    with Lease(tmp_path) as lease:
        saving = Saver(SmallEngine(), make_job(tmp_path, lease.attempt), rank=0, world=1)
        monkeypatch.setattr(saver, "write", lambda shards: (_ for _ in ()).throw(OSError(code, "full")))
        saving.save(2, 1.0)
        with pytest.raises(UserError, match=r"the checkpoint of step 2: it needs 4000 bytes .* continues from step 0"):
            saving.wait()


def test_a_stage_in_the_manifest_is_the_writers(tmp_path):
    with Lease(tmp_path) as lease:
        job = make_job(tmp_path, lease.attempt)
        job = replace(job, config=replace(job.config, scaling=replace(job.config.scaling, zero_stage=3)))
        saving = Saver(SmallEngine(), job, rank=0, world=1)
        saving.save(1, 1.0)
        saving.wait()
    manifest = checkpoint.newest(tmp_path)[1]
    assert (manifest.zero_stage, manifest.world_size, manifest.attempt) == (3, 1, 1)
