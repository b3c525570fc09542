"""Which code this is: the package's version, and the git commit where it runs from a checkout."""
from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version

from pipelines.errors import REPOSITORY


def code_version() -> str:
    """Such as `0.1.0+1a2b3c4`, with `-dirty` where the checkout differs from its commit; `unknown` without a package.

    A submitted job runs from an upload without git: there the version alone is known.
    """
    try:
        package = version("ashnets")
    except PackageNotFoundError:
        package = "unknown"
    if not (REPOSITORY / ".git").exists():
        return package
    try:
        described = subprocess.run(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"],
                                   capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return package
    return f"{package}+{described.stdout.strip()}"
