"""A slow consumer and a large store do not fill the object store."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.feed.memory_run import OBJECT_STORE

GROUPS = 9_216
BLOCKS = 72
FILLING = 24
"""Blocks until the pipeline is full, on a slow machine."""
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.full
def test_object_store_use_stays_level(tmp_path: Path) -> None:
    """All of the small store's blocks are 370 MiB, of the large one's 5.8 GiB; the object store holds 100 MiB."""
    used = {}
    for times in (1, 16):
        folder = tmp_path / str(times)
        folder.mkdir()
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run([sys.executable, "-m", "tests.pipelines.feed.memory_run", str(folder),
                               str(times * GROUPS), str(BLOCKS)], cwd=REPOSITORY, env=environment, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        used[times] = json.loads(done.stdout.splitlines()[-1])
    for series in used.values():
        half = (FILLING + BLOCKS) // 2
        first, second = max(series[FILLING:half]), max(series[half:])
        assert second <= 1.25 * first
        assert max(series) <= 0.75 * OBJECT_STORE
    assert max(used[16]) <= 1.25 * max(used[1])
