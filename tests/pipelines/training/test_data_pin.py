"""Which version of a growing store a run trains on."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.store.table import ImageTextStore
from pipelines.training import preflight
from pipelines.training.data_pin import DataPin, first_version, pinned, read_pin
from tests.e2e.bad_input import rows


def on(version: int) -> PretrainConfig:
    return replace(PretrainConfig(), train=replace(PretrainConfig().train, data_version=version))


def test_a_run_begins_with_the_named_version_or_the_newest_and_stays_there(tmp_path: Path) -> None:
    store = ImageTextStore(tmp_path / "store")
    store.append([rows(20, 0)], "one")
    first = store.version()
    store.append([rows(8, 6).set_column(0, "sample_id", rows(40, 14)["sample_id"][:14])], "two")
    second = store.version()
    assert first_version(on(0), store) == second > first
    assert first_version(on(first), store) == first
    with pytest.raises(UserError, match=f"train.data_version=9: .*store has versions up to {second}"):
        first_version(on(9), store)
    assert preflight.store(on(0), store.path).ok
    early = preflight.store(on(first), store.path)
    assert not early.ok and "no samples of split 'val'" in early.finding
    (tmp_path / "run").mkdir()
    pin = pinned(tmp_path / "run", store.path, first, tmp_path / "groups")
    assert pin == read_pin(tmp_path / "run") == DataPin(str(store.path), first, str(tmp_path / "groups"))
    assert preflight.data_plan(on(0), tmp_path / "run", store.path) == pin
    assert preflight.data_plan(on(first), tmp_path / "other", store.path).version == first
