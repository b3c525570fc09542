"""`ingest` before Ray starts: its configuration files, and mistakes that end in one line and exit code 2."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from jobs import cli
from pipelines.sources.config import Format, IngestConfig

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((cli.CONFIGS / "ingest").glob("*.yaml"))


def test_every_format_has_a_commented_file() -> None:
    assert {file.stem for file in FILES} == set(get_args(Format))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_what_it_says(file: Path) -> None:
    config = cli.parse(IngestConfig, ["--config", str(file)], description="").config
    assert config.source.format == file.stem
    assert file.read_text().startswith("# ") and f"--config jobs/configs/ingest/{file.name}" in file.read_text()


@pytest.mark.parametrize(("words", "message"), [
    (["source.path=nowhere", "data.store=STORE"], "source.path=nowhere does not exist: name a folder that does"),
    (["source.path=FOLDER"], "data.store is missing: name the store that is filled, data.store=PATH"),
    (["source.format=coco", "source.path=FILE", "source.images=nowhere", "data.store=STORE"],
     "source.images=nowhere does not exist: name a folder that does"),
    (["source.format=tfrecord"], "source.format='tfrecord' is not allowed: one of folder, coco,"),
    (["source.splits=[test]"], "source.splits='test' is not allowed: theirs=ours, such as"),
    (["source.name=../up"], "source.name='../up' is not allowed: letters, digits"),
    (["source.image_colum=x"], "source.image_colum: unknown key; did you mean source.image_column?"),
    (["source.path=file:///tmp", "data.store=STORE"], "a file here is named by its plain path"),
])
def test_a_mistake_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("{}")
    places = {"STORE": str(tmp_path / "store"), "FOLDER": str(tmp_path), "FILE": str(tmp_path / "file.json")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    done = subprocess.run([sys.executable, str(REPOSITORY / "jobs/ingest.py"), *words], capture_output=True, text=True,
                          cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "store").exists()
