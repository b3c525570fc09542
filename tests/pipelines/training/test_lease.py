"""One driver a run: refused while it lives, taken over when it is dead."""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from pipelines.errors import UserError
from pipelines.training import lease as leases
from pipelines.training.lease import Fenced, Lease, Order, holding, order, read_holder

HOLD = """
import sys, time
from pathlib import Path
from pipelines.training.lease import Lease
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

HOLD_LOCK = HOLD.replace("Lease", "lock")


@contextmanager
def another(script, run):
    """A process that holds the run's lease or lock; dead behind the block."""
    process = subprocess.Popen([sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_stopped_process_that_holds_the_lock_is_named(tmp_path, monkeypatch):
    with Lease(tmp_path):
        pass
    monkeypatch.setattr(leases, "LOCK_S", 0.3)
    with another(HOLD_LOCK, tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        told = rf"pid {other.pid} on \S+ holds the lock of run {tmp_path.name} and does not go on"
        with pytest.raises(UserError, match=told), Lease(tmp_path):
            pass
    with Lease(tmp_path) as mine:
        assert mine.attempt == 2


def test_the_heartbeat_outlives_a_lock_that_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(leases, "LOCK_S", 0.1)
    with Lease(tmp_path):
        with leases.lock(tmp_path):
            time.sleep(0.6)
        held = read_holder(tmp_path).heartbeat
        time.sleep(0.6)
        assert read_holder(tmp_path).heartbeat > held


def test_a_live_run_is_refused_by_name_and_taken_over_after_a_kill(tmp_path):
    with another(HOLD, tmp_path) as other:
        told = rf"pid {other.pid} on \S+ has it since .*run.takeover=true"
        with pytest.raises(UserError, match=told), Lease(tmp_path):
            pass
    with Lease(tmp_path) as mine:
        assert mine.attempt == 2
        assert read_holder(tmp_path).pid == os.getpid()


def test_a_stale_heartbeat_of_another_host_is_taken_over(tmp_path):
    with Lease(tmp_path):
        holder = read_holder(tmp_path)
    foreign = dataclasses.replace(holder, host="elsewhere", released=False, heartbeat=time.time())
    (tmp_path / "lease.json").write_text(json.dumps(dataclasses.asdict(foreign)))
    with pytest.raises(UserError, match="elsewhere"), Lease(tmp_path):
        pass
    stale = dataclasses.replace(foreign, heartbeat=time.time() - leases.STALE_S - 1)
    (tmp_path / "lease.json").write_text(json.dumps(dataclasses.asdict(stale)))
    with Lease(tmp_path) as mine:
        assert mine.attempt == 2


def test_the_heartbeat_beats_and_stops_when_superseded(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(leases, "NOTICE_S", 0.05)
    with Lease(tmp_path) as old:
        first = read_holder(tmp_path).heartbeat
        time.sleep(0.3)
        assert read_holder(tmp_path).heartbeat > first
        with Lease(tmp_path, takeover=True) as new:
            time.sleep(0.3)
            assert read_holder(tmp_path).attempt == new.attempt == old.attempt + 1
    assert read_holder(tmp_path).released


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_workers_are_told_to_go_on_to_stop_or_that_they_are_fenced(tmp_path):
    with Lease(tmp_path) as old:
        assert order(tmp_path, old.attempt) is Order.GO_ON
        old.stop_workers()
        wait_for(lambda: order(tmp_path, old.attempt) is Order.STOP)
        with Lease(tmp_path, takeover=True) as new:
            assert order(tmp_path, new.attempt) is Order.GO_ON, "the request was the other launch's"
            old.stop_workers()
            time.sleep(2 * leases.NOTICE_S)
            assert order(tmp_path, old.attempt) is Order.FENCED
            assert order(tmp_path, new.attempt) is Order.GO_ON


def test_nobody_takes_a_run_over_between_a_commits_check_and_its_rename(tmp_path):
    attempts = []

    def take_over():
        with Lease(tmp_path, takeover=True) as new:
            attempts.append(new.attempt)

    with Lease(tmp_path) as old:
        other = threading.Thread(target=take_over)
        with holding(tmp_path, old.attempt):
            other.start()
            time.sleep(0.3)
            assert attempts == [] and read_holder(tmp_path).attempt == old.attempt
        other.join()
        assert attempts == [old.attempt + 1]
        with pytest.raises(Fenced), holding(tmp_path, old.attempt):
            pytest.fail("the old launch may write no more")
