"""Start a module whose processes train together, and wait for what they write."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def run_ranks(module: str, folder: Path, seconds: float, *arguments: str) -> None:
    """Run `tests.pipelines.training.<module> folder arguments` on the CPU; fails with its output where it fails."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launched = subprocess.Popen(
        [sys.executable, "-m", f"tests.pipelines.training.{module}", str(folder), *arguments], cwd=REPOSITORY,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = launched.communicate(timeout=seconds)
    finally:
        if launched.poll() is None:
            os.killpg(launched.pid, signal.SIGKILL)  # the ranks too
    assert launched.returncode == 0, output[-8000:]
