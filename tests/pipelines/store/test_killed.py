"""Ingests that are killed or race: the store is readable always, a re-run completes it, nothing is lost or doubled."""
from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.config import DataConfig
from pipelines.store.ingest import ingest_demo
from pipelines.store.table import ImageTextStore

REPOSITORY = Path(__file__).resolve().parents[3]
DRIVER = Path(__file__).parent / "ingest_run.py"


def start(ray: ModuleType, store: str | Path, scenes: int, hook: str = "", go: Path | None = None
          ) -> subprocess.Popen[str]:
    """A driver on the tests' cluster that is ready to ingest; the file `go` (default: <store>.go) lets it."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen([sys.executable, str(DRIVER), str(store), str(scenes), str(go or f"{store}.go"), hook],
                               text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def digest(store: str | Path) -> list[tuple[str, str]]:
    """Every row of the store, by id, but for the batch it came with."""
    rows = [row for batch in ImageTextStore(store).iter_batches() for row in batch.to_pylist()]
    return sorted((row["sample_id"], hashlib.sha256(repr(sorted({**row, "batch_id": ""}.items())).encode()).hexdigest())
                  for row in rows)


def look_and_complete(path: Path, scenes: int, whole: list[tuple[str, str]]) -> bool:
    """Look at the store of a killed ingest and run the ingest again; whether it had committed."""
    committed = ImageTextStore(path).exists()
    assert not committed or digest(path) == whole
    report = ingest_demo(DataConfig(source="scenes", scenes=scenes, scenes_val=8), path)
    assert report.added == (0 if committed else len(whole)) and digest(path) == whole
    if not committed:  # then this ingest has swept away what the killed one left
        assert {str(file) for file in path.glob("*.parquet")} == set(ImageTextStore(path).files())
        assert not list(path.glob(".*.tmp"))
    return committed


def kill_often(ray: ModuleType, folder: Path, scenes: int, kills: int) -> None:
    process = start(ray, folder / "whole", scenes)
    (folder / "whole.go").touch()
    added, seconds = process.communicate(timeout=500)[0].split()
    whole = digest(folder / "whole")
    assert int(added) == len(whole) == scenes + 8
    generator = random.Random(scenes)
    committed = []
    for number in range(kills):
        inside = folder / str(number)
        inside.mkdir()
        # Evenly over the length of an ingest, at random within each part of it.
        moment = (number + generator.random()) / kills * float(seconds)
        process = start(ray, inside / "store", scenes)
        (inside / "store.go").touch()
        time.sleep(moment)
        process.kill()
        process.wait()
        committed.append(look_and_complete(inside / "store", scenes, whole))
    assert not all(committed), "no ingest was killed before its end"


def test_a_killed_ingest_leaves_the_version_before_or_after_and_a_re_run_completes_it(
        ray_local: ModuleType, tmp_path: Path) -> None:
    kill_often(ray_local, tmp_path, 2_000, 2)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_ten_kills_of_an_ingest_of_twenty_thousand_scenes(ray_local: ModuleType, tmp_path: Path) -> None:
    kill_often(ray_local, tmp_path, 20_000, 10)


@pytest.mark.parametrize("moment,committed", [("before drop_duplicates", False), ("before append", False),
                                              ("before _commit", False), ("after _commit", True),
                                              ("after append", True)])
def test_an_ingest_that_dies_around_its_commit(moment: str, committed: bool, ray_local: ModuleType,
                                               tmp_path: Path) -> None:
    scenes = 600  # two files of training scenes
    ingest_demo(DataConfig(source="scenes", scenes=scenes, scenes_val=8), tmp_path / "whole")
    process = start(ray_local, tmp_path / "store", scenes, f"die {moment}")
    (tmp_path / "store.go").touch()
    assert process.wait(100) == -signal.SIGKILL
    assert list((tmp_path / "store").glob("*.parquet"))
    assert look_and_complete(tmp_path / "store", scenes, digest(tmp_path / "whole")) == committed


@pytest.mark.parametrize("scenes", [(40, 40), (40, 60)])
def test_racing_ingests_both_land_and_no_row_is_doubled(scenes: tuple[int, int], ray_local: ModuleType,
                                                        tmp_path: Path) -> None:
    path = tmp_path / "store"
    processes = [start(ray_local, path, count, "wait before append") for count in scenes]
    Path(f"{path}.go").touch()
    added = [int(process.communicate(timeout=200)[0].split()[0]) for process in processes]
    ids = [sample_id for sample_id, _ in digest(path)]
    assert len(ids) == len(set(ids)) == sum(added) == max(scenes) + 8
    assert {str(file) for file in path.glob("*.parquet")} == set(ImageTextStore(path).files())
