"""A process that hangs writes its stacks and ends itself, even under Python's lock; one that works does not."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipelines.training.watchdog import remove_empty

BEGIN = """
import ctypes, sys, threading, time
from pathlib import Path
from pipelines.training.watchdog import Watchdog
def spins_in_a_collective():
    ctypes.PyDLL(None).sleep(60)  # a call into C that keeps Python's lock
with Watchdog(Path(sys.argv[1]), attempt=2, rank=1, limit_s=0.3) as watchdog:
    watchdog.step()
    watchdog.step()
"""


def run(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    code = BEGIN + "".join(f"    {line}\n" for line in body.splitlines())
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=50)


def test_a_hang_ends_the_process_and_leaves_every_threads_stack(tmp_path: Path) -> None:
    done = run(tmp_path, "threading.Thread(target=time.sleep, args=(60,)).start()\nspins_in_a_collective()")
    assert done.returncode == 1
    (left,) = (tmp_path / "stalls").iterdir()
    assert left.name.startswith("attempt-2-rank-1-pid-")
    told = left.read_text()
    assert "Timeout" in told and "in spins_in_a_collective" in told and told.count("Thread 0x") == 2
    remove_empty(tmp_path)
    assert left.exists()


def test_steps_that_come_in_time_are_left_alone(tmp_path: Path) -> None:
    done = run(tmp_path, "for _ in range(8):\n    time.sleep(0.1)\n    watchdog.step()")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "stalls").iterdir())


def test_slow_work_has_longer_but_not_for_ever(tmp_path: Path) -> None:
    done = run(tmp_path, "with watchdog.slow():\n    time.sleep(1)\nprint('done', flush=True)\ntime.sleep(30)")
    assert done.returncode == 1 and done.stdout == "done\n"


def test_long_steps_stretch_the_limit(tmp_path: Path) -> None:
    """Five times the fastest step, where that is more: here 2 s instead of 0.3 s."""
    code = BEGIN.replace("    watchdog.step()\n", "") + (
        "    watchdog.step()\n    time.sleep(0.4)\n    watchdog.step()\n    time.sleep(0.8)\n    watchdog.step()\n"
        "    print('goes on', flush=True)\n    time.sleep(30)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and done.stdout == "goes on\n"


def test_files_of_killed_watchdogs_are_removed(tmp_path: Path) -> None:
    done = run(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -9 and len(list((tmp_path / "stalls").iterdir())) == 1
    remove_empty(tmp_path)
    assert not list((tmp_path / "stalls").iterdir())
