"""Errors with a meaning: a user's mistake, told as one line, and what no restart mends (no torch or ray import)."""
from __future__ import annotations

import dis
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
OUR_PACKAGES = tuple(REPOSITORY / name for name in ("ashnets", "pipelines", "jobs", "cluster"))


class UserError(ValueError):
    """What the user can mend; its message names the thing and the mend, one mistake a line.

    `jobs.cli.run` prints it and exits 2. Raise it where a mistake surfaces far from its cause, such as in a worker;
    a plain `ValueError` or `FileNotFoundError` that our own code raises counts as a user's mistake too.
    """

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.told = told

    def __str__(self) -> str:
        """What was told, without what Ray Data adds to the arguments of every exception in its tasks."""
        return self.told


class Preempted(BaseException):
    """The launch was asked to end (SIGTERM): exit 75, the same command goes on. Nothing may take it for a failure."""


class FinalError(RuntimeError):
    """What comes again after every restart, so that the launch ends with it at once (exit 1)."""


def is_users_mistake(error: Exception) -> bool:
    """Whether our own code raised `error` to tell the user of a mistake.

    True for UserError, and for a ValueError or FileNotFoundError from a `raise` statement of our packages; one that
    comes out of a library, or out of a failing built-in such as `int("x")`, is unexpected and keeps its trace.
    """
    if isinstance(error, UserError):
        return True
    last = error.__traceback__
    if last is None or not isinstance(error, ValueError | FileNotFoundError):
        return False
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    ours = any(package in Path(code.co_filename).resolve().parents for package in OUR_PACKAGES)
    return ours and dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
