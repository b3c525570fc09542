"""The lease of a run: one driver at a time, kept by a heartbeat, taken over when its holder is dead.

`lease.json` holds host, pid, attempt, since and heartbeat. A commit checks the attempt (fencing): whoever lost
the lease writes over nothing newer.
"""
from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock

from pipelines.errors import FinalError, UserError
from pipelines.files import write_atomically

HEARTBEAT_S = 5.0
STALE_S = 30.0


class Fenced(FinalError):
    """Another launch has taken the run over: this one must write nothing more."""


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
    """Hold the run while the `with` block lasts; raises UserError while another live launch holds it."""

    def __init__(self, run: Path, takeover: bool = False) -> None:
        self._run, self._takeover = run, takeover
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)

    def __enter__(self) -> Lease:
        self._run.mkdir(parents=True, exist_ok=True)
        with FileLock(self._run / ".lease.lock"):
            held = check_free(self._run, self._takeover)
            now = time.time()
            self._holder = Holder(socket.gethostname(), os.getpid(), psutil.Process().create_time(),
                                  held.attempt + 1 if held else 1, now, now)
            self._write()
        self._thread.start()
        return self

    @property
    def attempt(self) -> int:
        """Number of this launch, counted over the run's life."""
        return self._holder.attempt

    def _write(self) -> None:
        write_atomically(self._run / "lease.json", json.dumps(asdict(self._holder), indent=1).encode())

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with FileLock(self._run / ".lease.lock"):
                held = read_holder(self._run)
                if held is None or held.attempt != self.attempt:
                    return
                self._holder = Holder(**{**asdict(self._holder), "heartbeat": time.time()})
                self._write()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with FileLock(self._run / ".lease.lock"):
            held = read_holder(self._run)
            if held is not None and held.attempt == self.attempt:
                self._holder = Holder(**{**asdict(self._holder), "released": True})
                self._write()
