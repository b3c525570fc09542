"""The mistake of a user: reported as one clear line, never as a trace (no ray or torch import)."""
from __future__ import annotations


class UserError(ValueError):
    """What the user can mend; its message names the thing and the mend, one mistake a line.

    `jobs.cli.run` prints it and exits 2. Raise it where a mistake surfaces far from its cause, such as in a worker;
    a plain `ValueError` or `FileNotFoundError` that our own code raises counts as a user's mistake too.
    """
