"""The lease of a run: one driver at a time, kept by a heartbeat, taken over when its holder is dead.

`lease.json` holds host, pid, attempt, since and heartbeat. The workers look at it at every step: whoever lost the
lease stops (fencing), and whom its own driver asks to stop writes a checkpoint first (preemption). A commit checks it
once more while it keeps others from taking the run over, so that it writes over nothing newer.
"""
from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import IntEnum
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from pipelines.errors import FinalError, UserError
from pipelines.files import write_atomically

HEARTBEAT_S = 5.0
STALE_S = 30.0
NOTICE_S = 0.2
"""How soon the heartbeat writes down that the workers shall stop."""
LOCK_S = 30.0
"""Nobody holds the lease's lock for longer than a rename takes, unless its process was stopped."""


class Fenced(FinalError):
    """Another launch has taken the run over: this one must write nothing more."""


class Order(IntEnum):
    """What the lease says to the workers of an attempt; as a number, since it travels in an all-reduce."""

    GO_ON = 0
    STOP = 1
    """The driver was preempted: write a checkpoint and end."""
    FENCED = 2
    """Another launch has taken the run over: end."""


@dataclass(frozen=True)
class Holder:
    """Who holds the run; `started` is the process's start time (a pid alone can be reused)."""

    host: str
    pid: int
    started: float
    attempt: int
    since: float
    heartbeat: float
    released: bool = False
    stop: bool = False
    """The holder was preempted and asks its workers to stop."""

    def alive(self) -> bool:
        """Whether the holder still runs, as far as this host can know."""
        if self.released or time.time() - self.heartbeat > STALE_S:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.NoSuchProcess:
            return False


def read_holder(run: Path) -> Holder | None:
    """The lease as it stands, or None where there is none."""
    path = run / "lease.json"
    return Holder(**json.loads(path.read_text())) if path.exists() else None


def check_attempt(run: Path, attempt: int) -> None:
    """Raise Fenced unless `attempt` still holds the lease of `run`."""
    holder = read_holder(run)
    if holder is None or holder.attempt != attempt:
        raise Fenced(f"{run}: attempt {attempt} was superseded by attempt {holder.attempt if holder else 'unknown'}")


def order(run: Path, attempt: int) -> Order:
    """What `attempt` is to do now."""
    holder = read_holder(run)
    if holder is None or holder.attempt != attempt:
        return Order.FENCED
    return Order.STOP if holder.stop else Order.GO_ON


@contextmanager
def holding(run: Path, attempt: int) -> Iterator[None]:
    """Nobody takes the run over while the block lasts; Fenced where somebody has. For a rename, not for more."""
    with lock(run):
        check_attempt(run, attempt)
        yield


def lock(run: Path) -> FileLock:
    """The lock of the lease, which the kernel gives back when its holder dies."""
    return FileLock(run / ".lease.lock", timeout=LOCK_S)


def check_free(run: Path, takeover: bool) -> Holder | None:
    """The run's last holder, or None; UserError while it is alive, unless `takeover` forces it out."""
    held = read_holder(run)
    if held and held.alive() and not takeover:
        since = datetime.fromtimestamp(held.since).strftime("%Y-%m-%d %H:%M:%S")
        raise UserError(
            f"run {run.name} is live: pid {held.pid} on {held.host} has it since {since}; wait for it, choose another "
            "run.name, or force it with run.takeover=true")
    return held


class Lease:
    """Hold the run while the `with` block lasts; raises UserError while another live launch holds it, and where the
    process that holds its lock does not go on.
    """

    def __init__(self, run: Path, takeover: bool = False) -> None:
        self._run, self._takeover = run, takeover
        self._stop = threading.Event()
        self._workers_stop = False
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)

    def __enter__(self) -> Lease:
        self._run.mkdir(parents=True, exist_ok=True)
        try:
            with lock(self._run):
                self._take()
        except Timeout as error:
            raise UserError(
                f"{_lock_holder(self._run)} holds the lock of run {self._run.name} and does not go on: continue it "
                "(kill -CONT) or end it (kill -KILL), and run the same command again") from error
        self._thread.start()
        return self

    def _take(self) -> None:
        held = check_free(self._run, self._takeover)
        now = time.time()
        self._write(Holder(socket.gethostname(), os.getpid(), psutil.Process().create_time(),
                           held.attempt + 1 if held else 1, now, now))

    @property
    def attempt(self) -> int:
        """Number of this launch, counted over the run's life."""
        return self._holder.attempt

    def stop_workers(self) -> None:
        """Ask the workers to write a checkpoint and to end. Safe in a signal handler: the heartbeat writes it down."""
        self._workers_stop = True

    def _write(self, holder: Holder) -> None:
        write_atomically(self._run / "lease.json", json.dumps(asdict(holder), indent=1).encode())
        self._holder = holder

    def _update(self, **changes: object) -> bool:
        """Change the lease, unless another launch has it: False then."""
        with lock(self._run):
            held = read_holder(self._run)
            mine = held is not None and held.attempt == self.attempt
            if mine:
                self._write(replace(self._holder, **changes))  # type: ignore[arg-type]
            return mine

    def _beat(self) -> None:
        while not self._stop.wait(NOTICE_S):
            due = time.time() - self._holder.heartbeat >= HEARTBEAT_S
            with suppress(Timeout):  # a worker was stopped while it held the lock: its group is restarted
                if (due or self._workers_stop != self._holder.stop) and not self._update(
                        heartbeat=time.time(), stop=self._workers_stop):
                    return

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._update(released=True)


def _lock_holder(run: Path) -> str:
    """Who holds the lease's lock, by Linux's table of this machine's locks."""
    lock_file = (run / ".lease.lock").stat()
    name = f"{os.major(lock_file.st_dev):02x}:{os.minor(lock_file.st_dev):02x}:{lock_file.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, *fields = line.split()
        if kind == "FLOCK" and fields[3] == name:
            return f"pid {fields[2]} on {socket.gethostname()}"
    return "a process on another machine"
