"""Run the jobs as a user does: as processes, on a small real store (the fixtures `jobs` and `tiny` of all tests)."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "tests" / "e2e" / "tiny.yaml"


LONGEST = ("tests/e2e/test_export.py", "tests/pipelines/training/test_equivalence.py", "tests/pipelines/training/"
           "test_nonfinite.py", "tests/e2e")
"""These run first, in this order, so that no process is left alone with them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests by LONGEST; the others keep theirs."""
    def place(item: pytest.Item) -> int:
        return next((i for i, path in enumerate(LONGEST) if item.path.is_relative_to(REPOSITORY / path)), len(LONGEST))
    items.sort(key=place)


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class Jobs:
    """Commands on one storage and one store."""

    storage: Path
    store: Path
    home: Path

    def arguments(self, *keys: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "jobs" / "pretrain.py"), "--config", str(TINY),
                f"run.storage={self.storage}", f"data.store={self.store}", *keys]

    def environment(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(self.home)}

    def start(self, *keys: str) -> subprocess.Popen[str]:
        """Start `jobs/pretrain.py` from a foreign folder, in a process group of its own."""
        return subprocess.Popen(self.arguments(*keys), cwd=self.home, env=self.environment(), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def run(self, *keys: str) -> subprocess.CompletedProcess[str]:
        """Run `jobs/pretrain.py` to its end."""
        process = self.start(*keys)
        out, err = process.communicate(timeout=280)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def make_jobs(base: Path) -> Jobs:
    """A store of 94 + 24 scenes, and places to run in; nothing is made twice.

    The extensions' cache is the user's: it is built at set-up.
    """
    home = base / "home"
    made = Jobs(base / "runs", base / "store", home)
    if made.store.exists():
        return made
    (home / ".cache").mkdir(parents=True)
    extensions = Path.home() / ".cache" / "torch_extensions"
    if extensions.exists():
        (home / ".cache" / "torch_extensions").symlink_to(extensions)
    code = (
        "from pathlib import Path; import sys; from cluster.connection import connect; connect(2);"
        "from pipelines.config import DataConfig; from pipelines.store.ingest import ingest_demo;"
        "ingest_demo(DataConfig(source='scenes', scenes=94, scenes_val=24, scene_size=32), Path(sys.argv[1]), print)")
    subprocess.run([sys.executable, "-c", code, str(made.store)], cwd=REPOSITORY, env=made.environment(), check=True,
                   timeout=200)
    return made


@dataclass(frozen=True)
class Finished:
    """An uninterrupted run of the tiny configuration."""

    folder: Path
    output: str


def train_tiny(jobs: Jobs) -> Finished:
    """12 steps on two workers; what they printed is kept beside the runs, and no run is made twice."""
    said = jobs.storage.with_name("tiny.out")
    if not said.exists():
        done = jobs.run()
        assert done.returncode == 0, done.stderr
        said.write_text(done.stdout)
    return Finished(jobs.storage / "tiny", said.read_text())
