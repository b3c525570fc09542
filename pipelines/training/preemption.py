"""SIGTERM to the driver: the workers write a checkpoint and the launch ends with exit code 75, to be run again."""
from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from pipelines.errors import Preempted
from pipelines.training.lease import Lease

AGAIN = "run the same command again"
NOTHING_TO_SAVE = f"preempted while there was nothing to save: {AGAIN}"


class Preemption:
    """Listens for SIGTERM while the `with` block lasts; the first one counts, the others change nothing."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._asked = self._training = False
        self._before: object = signal.SIG_DFL

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGTERM)
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)  # type: ignore[arg-type]
        heard = self._asked and not self._training  # Ray's compiled calls make a SystemError of what was raised
        in_rays_start = isinstance(error, SystemExit) and error.code == signal.SIGTERM
        if error is not None and (heard or in_rays_start) and not isinstance(error, Preempted):
            raise Preempted(NOTHING_TO_SAVE) from None

    def listen(self) -> None:
        """Take the signal, again where Ray has put its own handler in place; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._heard)

    def _heard(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            return
        self._asked = True
        if not self._training:
            raise Preempted(NOTHING_TO_SAVE)
        self._lease.stop_workers()

    @contextmanager
    def training(self, run: Path) -> Iterator[None]:
        """While the workers train, a signal goes to them; where one came, Preempted is raised at the block's end."""
        self._training = True
        yield
        self._training = False
        if self._asked:
            committed = [int(folder.name[5:]) for folder in (run / "checkpoints").glob("step-*")]
            raise Preempted(f"preempted at step {max(committed, default=0)}: {AGAIN}")
