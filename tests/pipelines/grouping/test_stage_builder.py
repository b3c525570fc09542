"""The driver's stage builder: a failure reaches those who wait, and only what nobody can resume in is removed."""
from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.errors import FinalError, UserError
from pipelines.feed.stages import Stages
from pipelines.grouping import stage_builder
from pipelines.grouping.materialise import building_folder
from pipelines.training import checkpoint
from pipelines.training.lease import Lease
from tests.pipelines.training.small_checkpoints import make_checkpoint
from tests.small_disk import small_disk


def make_job(run: Path) -> tuple[Any, Stages]:
    """A job of 40 groups an epoch with stages 1 to 3, which begin at positions 40, 80 and 120."""
    stages = Stages(str(run / "stages"), every=1, lead=10)
    for stage in (1, 2, 3):
        stages.groups(stage).mkdir(parents=True)
    return SimpleNamespace(run=run, groups=40, plan=SimpleNamespace(stages=stages)), stages


def write_model(stages: Stages) -> None:
    """What training leaves for stage 1, whose groups are not there."""
    shutil.rmtree(stages.groups(1))
    stages.model(1).mkdir()
    (stages.model(1) / "model.safetensors").write_bytes(b"no weights")


def left(stages: Stages) -> list[str]:
    return sorted(path.name for path in Path(stages.folder).iterdir())


def test_stages_go_when_no_checkpoint_lies_in_them(tmp_path: Path) -> None:
    """Checkpoints at positions 64 and 96: the first lies in stage 1."""
    job, stages = make_job(tmp_path)
    stage_builder.remove_old(job, stages)
    assert len(left(stages)) == 3, "a run without a checkpoint starts again from the first stage"
    with Lease(tmp_path) as lease:
        first = make_checkpoint(tmp_path, lease.attempt, 2)
        make_checkpoint(tmp_path, lease.attempt, 3)
    stage_builder.remove_old(job, stages)
    assert len(left(stages)) == 3
    (first / checkpoint.MANIFEST).unlink()  # as a worker that is removing it does
    stage_builder.remove_old(job, stages)
    assert len(left(stages)) == 3
    shutil.rmtree(first)
    stage_builder.remove_old(job, stages)
    assert left(stages) == ["stage-0002", "stage-0003"]


def test_a_failure_reaches_those_who_wait_and_the_next_launch_tries_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, stages = make_job(tmp_path)
    write_model(stages)

    def break_off(*_: object) -> None:
        raise RuntimeError("no GPU")

    monkeypatch.setattr(stage_builder, "build", break_off)
    builder = stage_builder.StageBuilder(job)
    with builder:
        builder._thread.join(20)
    with pytest.raises(FinalError, match="stage 1 of the groups could not be built: RuntimeError: no GPU"):
        stages.ready(1)
    monkeypatch.setattr(stage_builder, "build", lambda *_: stages.groups(1).mkdir())
    with stage_builder.StageBuilder(job):
        while not stages.ready(1):
            pass


def test_a_disk_without_room_for_a_word_reaches_those_who_wait(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        job, stages = make_job(disk.path)
        write_model(stages)

        def build(*_: object) -> None:
            disk.fill()
            with building_folder(stages.groups(1), 5000) as folder:
                (folder / "part").write_bytes(bytes(5000))

        monkeypatch.setattr(stage_builder, "build", build)
        builder = stage_builder.StageBuilder(job)
        with builder:
            builder._thread.join(20)
        said = f"the disk of {stages.groups(1)} is full: building the groups (groups.path) takes about 5 KiB, 0 MiB are"
        assert f"stage 1 of the groups could not be built, and training ends where it needs it: {said}" in (
            capsys.readouterr().out)
        told = f"stage 1 of the groups could not be built: the disk of {stages.path(1)} is full"
        with pytest.raises(UserError, match=f"^{told}.* run the same command again$"):
            stages.ready(1)
