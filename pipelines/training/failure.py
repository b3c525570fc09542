"""Which failures a restart can mend: a death is retried, what our own code raised ends the launch with its message."""
from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.train import UserCallback

from pipelines.errors import FinalError, UserError, is_users_mistake

NO_USE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
"""Faults of the storage that are still there after a restart."""


@contextmanager
def final_errors(rank: int) -> Iterator[None]:
    """Around a worker's whole work: what a restart meets again becomes a UserError or a FinalError.

    Both hold nothing but text, so that they reach the driver whatever was raised; what is unexpected brings the
    worker's own trace.
    """
    try:
        yield
    except Exception as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if is_users_mistake(cause):
            raise UserError(str(cause)) from error
        if isinstance(cause, FinalError):
            raise FinalError(f"rank {rank}: {cause}") from error
        if restart_may_mend(cause):
            raise
        raise FinalError(f"rank {rank}: unexpected {type(cause).__name__}\n{traceback.format_exc()}") from error


def restart_may_mend(error: BaseException) -> bool:
    """Whether `error` may come from the death of another process, the network or the storage.

    Such are Ray's errors, the operating system's, and what torch raises where a peer of a collective operation has
    died: a plain RuntimeError or a subclass that is not ours.
    """
    if isinstance(error, OSError):
        return error.errno not in NO_USE
    return isinstance(error, RayError | RuntimeError) and not isinstance(error, FinalError)


class EndAtOnce(UserCallback):
    """Runs in Ray Train's controller: an exception raised here ends the training instead of a restart."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first worker's final error, if there is one."""
        for rank in sorted(worker_exceptions):
            if isinstance(worker_exceptions[rank], UserError | FinalError):
                raise worker_exceptions[rank]
