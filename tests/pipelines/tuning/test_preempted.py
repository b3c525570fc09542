"""SIGTERM to a sweep is a preemption wherever it finds the driver, and what is none stays what it is."""
from __future__ import annotations

import signal

import pytest

from pipelines.errors import Preempted
from pipelines.tuning.sweep import preempted


@pytest.mark.parametrize("compiled", [False, True])
def test_sigterm_is_told_in_one_line(compiled: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="trials go on from their newest checkpoints; run the same command again"):
        with preempted():
            try:
                signal.raise_signal(signal.SIGTERM)
            except Preempted as told:
                if compiled:  # as ray.get and ray.wait do
                    raise SystemError("returned a result with an exception set") from told
                raise
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_error_stays() -> None:
    with pytest.raises(SystemError, match="of its own"), preempted():
        raise SystemError("of its own")
