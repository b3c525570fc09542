"""What a check found: shown as a row by `jobs/doctor.py`, raised as a line by a launch."""
from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One check's result. `mend` says what to do where it is not `ok`, and is advice where it is."""

    name: str
    ok: bool
    finding: str
    mend: str = ""


def demand(*findings: Finding) -> None:
    """UserError with one line for each finding that is not ok."""
    lines = [": ".join(filter(None, (found.finding, found.mend))) for found in findings if not found.ok]
    if lines:
        raise UserError("\n".join(lines))
