"""Where the repository lies, and below which folder runs and stores go by default."""
from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def inside_submitted_job() -> bool:
    """Whether this process runs in a job that `ray job submit` started.

    There the repository is usually Ray's unpacked upload, which Ray deletes when it needs the space.
    """
    return is_unpacked_upload() or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def is_unpacked_upload() -> bool:
    """Whether the repository is a working directory that Ray uploaded and unpacked."""
    return "runtime_resources/working_dir_files" in REPOSITORY.as_posix()


def default_root() -> Path:
    """The folder of `runs/` and `data/`: the repository, or ~/ashnets in a submitted job or without a checkout."""
    if inside_submitted_job() or not (REPOSITORY / "pyproject.toml").exists():
        return Path.home() / "ashnets"
    return REPOSITORY
