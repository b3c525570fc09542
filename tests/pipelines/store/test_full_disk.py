"""A real disk that fills up during an ingest: one clear line, the earlier version intact, and on with more space."""
from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.sources.record import Sample
from pipelines.store.ingest import ingest
from pipelines.store.table import ImageTextStore


@dataclass(frozen=True)
class Noise:
    """Pictures of about 12 kB each."""

    count: int

    name, parts = "noise", 4

    @property
    def settings(self) -> dict[str, int]:
        return {"count": self.count}

    def read(self, part: int) -> Iterator[Sample]:
        for i in range(part, self.count, 4):
            out = io.BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)).save(out, "PNG")
            yield Sample(f"noise/{i:04d}", "train", out.getvalue(), (f"noise {i}",))


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(small_disk: Path, ray_local: ModuleType) -> None:
    ray_local.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    store = ImageTextStore(small_disk / "store")
    ingest([Noise(40)], DataConfig(), store.path)
    before = list(store.iter_batches()), set(store.path.glob("*.parquet"))
    with pytest.raises(UserError, match=f"the disk of {store.path} is full: nothing was appended"):
        ingest([Noise(400)], DataConfig(), store.path)
    assert (list(store.iter_batches()), set(store.path.glob("*.parquet"))) == before
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert ingest([Noise(400)], DataConfig(), store.path).added == 360
    assert store.count() == 400
