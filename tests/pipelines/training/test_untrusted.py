"""A pickle runs code where it is loaded: none that a stranger put into a run's folder is ever loaded."""
from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.resume import check_resumable, save_config
from pipelines.training import checkpoint, preflight
from pipelines.training.lease import Lease
from pipelines.training.restore import restore
from tests.pipelines.training.small_checkpoints import make_checkpoint


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.system, (f"touch {self.mark}",)


class TrustingEngine:
    """Unpickles every file below the folder that it is given, as DeepSpeed does."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.loaded: list[Path] = []

    def reads(self, world_size: int, zero_stage: int) -> bool:
        return True

    def load(self, folder: Path) -> None:
        self.loaded.append(folder)
        for path in sorted(folder.rglob("*")):
            try:
                torch.load(path, weights_only=False)
            except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, TypeError,
                    AttributeError, IndexError):
                continue


def raw(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(mark)))


def by_torch(path: Path, mark: Path) -> None:
    torch.save({"module": Evil(mark)}, path)


def foreign(run: Path, mark: Path) -> Path:
    """A whole checkpoint of another run, with a pickle in a shard's place and the right checksum for it."""
    other = run.with_name("other")
    with Lease(other) as lease:
        made = make_checkpoint(other, lease.attempt, 30)
        by_torch(made / "state" / "a.pt", mark)
        shutil.move(made, checkpoint.temporary_folder(other, 30, lease.attempt))
        (checkpoint.temporary_folder(other, 30, lease.attempt) / "manifest.json").unlink()
        manifest = checkpoint.Manifest(30, 960, 2, 2, lease.attempt, 0, 1.5, "hash", "0.1.0")
        return checkpoint.commit(other, manifest)


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step-00000020"


def forged(run: Path) -> Path:
    folder = run / "checkpoints" / "step-00000099"
    (folder / "state").mkdir(parents=True)
    return folder


def forged_with_the_manifest_of_20(run: Path, mark: Path) -> None:
    folder = forged(run)
    shutil.copy(newest(run) / "manifest.json", folder)
    by_torch(folder / "state" / "a.pt", mark)


def link_to_a_pickle(run: Path, mark: Path) -> None:
    raw(run / "evil.pkl", mark)
    (newest(run) / "state" / "a.pt").unlink()
    (newest(run) / "state" / "a.pt").symlink_to(run / "evil.pkl")


def yaml_that_calls(run: Path, mark: Path) -> None:
    (newest(run) / "config.yaml").write_text(f"run: !!python/object/apply:os.system ['touch {mark}']\n")


ATTACKS = {
    "a shard, raw": lambda run, mark: raw(newest(run) / "state" / "a.pt", mark),
    "a shard, by torch": lambda run, mark: by_torch(newest(run) / "state" / "b.pt", mark),
    "another file among the shards": lambda run, mark: by_torch(newest(run) / "state" / "c.pt", mark),
    "another file beside them": lambda run, mark: raw(newest(run) / "rng.pkl", mark),
    "the manifest": lambda run, mark: raw(newest(run) / "manifest.json", mark),
    "the configuration": yaml_that_calls,
    "a link": link_to_a_pickle,
    "a forged folder without a manifest": lambda run, mark: by_torch(forged(run) / "state" / "a.pt", mark),
    "a forged folder with another's manifest": forged_with_the_manifest_of_20,
    "another run's folder": lambda run, mark: shutil.copytree(foreign(run, mark), forged(run), dirs_exist_ok=True),
    "another run's folder under its own name": lambda run, mark: shutil.copytree(
        foreign(run, mark), run / "checkpoints" / "step-00000030"),
    "remains of a conversion": lambda run, mark: by_torch(run / "checkpoints" / ".tmp-universal.pt", mark),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints 10 and 20."""
    with Lease(tmp_path / "run") as lease:
        save_config(PretrainConfig(), tmp_path / "run")
        for step in (10, 20):
            make_checkpoint(tmp_path / "run", lease.attempt, step)
    return tmp_path / "run"


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_pickle_of_a_stranger_runs(run, tmp_path, attack):
    mark = tmp_path / "it-ran"
    ATTACKS[attack](run, mark)
    preflight.continues(run)
    check_resumable(PretrainConfig(), run)
    engine = TrustingEngine()
    with Lease(run) as lease:
        found = restore(engine, SimpleNamespace(run=run, attempt=lease.attempt), rank=0)
    harmless = attack in ("another run's folder", "another run's folder under its own name",
                          "remains of a conversion") or attack.startswith("a forged folder")
    assert engine.loaded == [run / "checkpoints" / f"step-000000{20 if harmless else 10}"]
    assert found.step == (20 if harmless else 10)
    assert not mark.exists()


@pytest.mark.parametrize("write", [raw, by_torch])
def test_the_payload_runs_where_it_is_loaded(tmp_path, write):
    """The proof above proves something: the engine would have run it."""
    write(tmp_path / "shard.pt", tmp_path / "it-ran")
    TrustingEngine().load(tmp_path)
    assert (tmp_path / "it-ran").exists()


def test_a_runs_own_configuration_calls_nothing(run, tmp_path):
    mark = tmp_path / "it-ran"
    (run / "config.yaml").write_text(f"run: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(UserError, match="no configuration of this version"):
        check_resumable(PretrainConfig(), run)
    assert not mark.exists()
