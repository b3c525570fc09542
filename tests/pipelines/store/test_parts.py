"""The store cut into parts: every row group is in one, and none is much larger than the others."""
from __future__ import annotations

import pytest

from pipelines.store import parts as module


def test_parts_cover_every_row_group_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "row_group_sizes", lambda file: {"a": [600, 600, 600, 10], "b": [], "c": [3000]}[file])
    parts = module.parts_of(["a", "b", "c"])
    assert [(part.number, part.file, part.row_groups, part.rows) for part in parts] == [
        (0, "a", (0, 1), 1200), (1, "a", (2, 3), 610), (2, "c", (0,), 3000)]
