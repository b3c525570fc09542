"""One way to run an importer as the command does, and to look at what came of it."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.config import DataConfig
from pipelines.sources.config import IngestConfig, SourceConfig
from pipelines.sources.importing import ImportReport, import_data
from pipelines.store.quarantine import read_quarantine
from pipelines.store.table import ImageTextStore
from tests.pipelines.sources.layouts import Truth

Ingest = Callable[..., ImportReport]


@pytest.fixture
def ingest(ray_local: ModuleType, tmp_path: Path) -> Ingest:
    """ingest(source.* keys, max_bad_share=...) fills <tmp_path>/store."""
    def run(max_bad_share: float = 0.0, **source: Any) -> ImportReport:
        places = {key: str(value) if isinstance(value, Path) else value for key, value in source.items()}
        data = DataConfig(store=str(tmp_path / "store"), max_bad_share=max_bad_share)
        return import_data(IngestConfig(SourceConfig(**places), data))
    return run


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[], Truth]:
    """What <tmp_path>/store holds, in the form of the layouts' truth."""
    def read() -> Truth:
        rows = [row for batch in ImageTextStore(tmp_path / "store").iter_batches() for row in batch.to_pylist()]
        assert all(row["sample_id"].startswith(row["source"] + "/") for row in rows)
        return {row["sample_id"]: (row["image"], tuple(row["captions"]), row["split"]) for row in rows}
    return read


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """The quarantine's reasons by reference."""
    def read() -> dict[str, str]:
        return {row["reference"]: row["reason"] for row in read_quarantine(tmp_path / "store").to_pylist()}
    return read
