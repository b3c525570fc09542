"""A checkpoint is complete or absent, and a damaged one is named and passed over."""
import json
import random
import shutil
from pathlib import Path

import pytest

from pipelines.training import checkpoint
from pipelines.training.lease import Fenced, Lease


def make(run: Path, attempt: int, step: int) -> Path:
    folder = checkpoint.temporary_folder(run, step, attempt)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "a.pt").write_bytes(random.Random(step).randbytes(5_000))
    (folder / "state" / "b.pt").write_bytes(b"optimizer" * step)
    return checkpoint.commit(run, step=step, position=step * 32, world_size=2, zero_stage=2, attempt=attempt, seed=0,
                             seconds=1.5)


def test_newest_whole_checkpoint_wins(tmp_path):
    with Lease(tmp_path) as lease:
        make(tmp_path, lease.attempt, 10)
        make(tmp_path, lease.attempt, 20)
    folder, manifest = checkpoint.newest(tmp_path)
    assert (folder.name, manifest.step, manifest.position) == ("step-00000020", 20, 640)


def test_what_was_not_committed_does_not_exist(tmp_path):
    with Lease(tmp_path) as lease:
        make(tmp_path, lease.attempt, 10)
        folder = checkpoint.temporary_folder(tmp_path, 20, lease.attempt)
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        assert checkpoint.newest(tmp_path)[1].step == 10
        checkpoint.retain(tmp_path, keep=1)
    assert not folder.exists()


def bit_flip(folder: Path) -> None:
    path = folder / "state" / "a.pt"
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "named"), [
    (bit_flip, "a.pt differs"),
    (lambda f: (f / "state" / "b.pt").unlink(), "b.pt is missing"),
    (lambda f: (f / "state" / "c.pt").write_bytes(b"x"), "c.pt is not in the manifest"),
    (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    (lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text()[:100]), "manifest.json cannot"),
    (lambda f: shutil.copy(f.parent / "step-00000010" / "manifest.json", f / "manifest.json"), "differs"),
])
def test_damage_is_named_and_the_one_before_used(tmp_path, damage, named):
    with Lease(tmp_path) as lease:
        make(tmp_path, lease.attempt, 10)
        damage(make(tmp_path, lease.attempt, 20))
    warnings: list[str] = []
    assert checkpoint.newest(tmp_path, warnings)[1].step == 10
    assert len(warnings) == 1 and "step-00000020" in warnings[0] and named in warnings[0]


def test_a_fenced_attempt_commits_nothing(tmp_path):
    with Lease(tmp_path) as old:
        make(tmp_path, old.attempt, 10)
        with Lease(tmp_path, takeover=True) as new:
            make(tmp_path, new.attempt, 20)
            with pytest.raises(Fenced):
                make(tmp_path, old.attempt, 30)
    assert checkpoint.newest(tmp_path)[1].step == 20


def test_retention_keeps_the_newest(tmp_path):
    with Lease(tmp_path) as lease:
        for step in (10, 20, 30):
            make(tmp_path, lease.attempt, step)
        checkpoint.retain(tmp_path, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000020", "step-00000030"]
    assert json.loads((tmp_path / "checkpoints" / names[1] / "manifest.json").read_text())["step"] == 30
