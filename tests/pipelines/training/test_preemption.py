"""SIGTERM to a driver: its workers are asked to stop through the lease, and it exits 75 with one line."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = """
import signal, sys, time
from pathlib import Path
from jobs import cli
from pipelines.errors import Preempted
from pipelines.training.lease import Lease, Order, order
from pipelines.training.preemption import Preemption

def main(argv):
    run = Path(argv[0])
    with Lease(run) as lease, Preemption(lease) as preemption:
        if argv[1] == "connecting":  # as ray.init does
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        if argv[1] != "training":
            print("ready", flush=True)
            try:
                time.sleep(60)
            except Exception:
                print("swallowed", flush=True)
            except Preempted as told:
                if argv[1] == "compiled":  # as ray.get and ray.wait do
                    raise SystemError("returned a result with an exception set") from told
                raise
        else:
            with preemption.training(run):
                print("ready", flush=True)
                while order(run, lease.attempt) is Order.GO_ON:
                    time.sleep(0.01)
                time.sleep(0.5)  # the workers write; a second signal comes now
                (run / "checkpoints" / "step-00000007").mkdir(parents=True)

cli.run(main)
"""


@pytest.mark.parametrize(("phase", "signals", "told"), [
    ("building", 1, "preempted while there was nothing to save: run the same command again\n"),
    ("connecting", 1, "preempted while there was nothing to save: run the same command again\n"),
    ("compiled", 1, "preempted while there was nothing to save: run the same command again\n"),
    ("training", 1, "preempted at step 7: run the same command again\n"),
    ("training", 3, "preempted at step 7: run the same command again\n"),
])
def test_sigterm_ends_with_75_and_one_line(tmp_path: Path, phase: str, signals: int, told: str) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), phase], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
    for _ in range(signals):
        driver.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    out, err = driver.communicate(timeout=30)
    assert (driver.returncode, out, err) == (75, "", told)
    assert json.loads((tmp_path / "lease.json").read_text())["released"] is True
