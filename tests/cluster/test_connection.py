"""The private cluster, and what signals to the driver's process group do to it."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil

DRIVER = """
import signal, sys
from cluster.connection import connect

connect(cpus=1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
import ray
print(*(process.process.pid for all_of_a_kind in ray._private.worker._global_node.all_processes.values()
        for process in all_of_a_kind), flush=True)
sys.stdin.readline()
print(ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=60))
"""


def start() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A driver that leads a process group, and the processes of its Ray."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], env=environment, text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert driver.stdout is not None and driver.stderr is not None
    pids = driver.stdout.readline().split()
    assert pids, driver.stderr.read()
    processes = [psutil.Process(int(pid)) for pid in pids]
    assert {"gcs_server", "raylet"} <= {process.name() for process in processes}
    return driver, processes


def test_sigterm_to_the_group_leaves_ray_at_work_until_its_driver_ends() -> None:
    driver, processes = start()
    os.killpg(driver.pid, signal.SIGTERM)
    out, err = driver.communicate("\n", timeout=120)
    assert (driver.returncode, out) == (0, "42\n"), err
    assert psutil.wait_procs(processes, timeout=30)[1] == []


def test_ray_ends_with_a_driver_that_is_killed() -> None:
    driver, processes = start()
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert psutil.wait_procs(processes, timeout=30)[1] == []
