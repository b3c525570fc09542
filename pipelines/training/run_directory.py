"""The run's files: configuration, metrics and sample records, each line whole and each step once."""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.files import write_atomically


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines; a torn last line (a crash inside a write) is left out."""
    if not path.exists():
        return
    for line in path.read_text().split("\n")[:-1]:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


class LineWriter:
    """Append JSON objects to a file, a line each, flushed at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the training loop)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._file.fileno())
        self._file.close()


def _split(path: Path, keep: Callable[[dict[str, Any]], bool], superseded: Path) -> None:
    lines = list(read_lines(path))
    kept = [line for line in lines if keep(line)]
    moved = [line for line in lines if not keep(line)]
    if moved:
        writer = LineWriter(superseded)
        for line in moved:
            writer.write(line)
        writer.close()
    if path.exists():
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def supersede(run: Path, step: int) -> None:
    """Move the lines beyond `step` (the checkpoint that is resumed from) into superseded/, so that each lives once.

    A line's `step` is the number of optimizer steps finished with it: the first step's lines carry 1.
    """
    _split(run / "metrics.jsonl", lambda line: line["step"] <= step, run / "superseded" / "metrics.jsonl")
    for folder in ("samples", "bad_samples"):
        for path in sorted((run / folder).glob("rank-*.jsonl")):
            _split(path, lambda line: line["step"] <= step, run / "superseded" / folder / path.name)
