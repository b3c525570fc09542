"""Raw rows of a window: the groups of the order in pieces, however many bytes a file has of them."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.feed import source
from pipelines.feed.source import read_window, window_slices

from .conftest import MakePlan


def test_pieces_are_the_groups_of_the_order(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row out of the store, whatever the size of the pieces."""
    monkeypatch.setattr(source, "PIECE_GROUPS", 5)
    plan = make_plan(window=500)
    [part] = window_slices(plan, 0, 6)
    pieces = list(read_window(plan, part, 1))
    assert [piece.num_rows for piece in pieces] == [5] * 7 + [1]
    store, rows = plan.store(), pa.concat_tables(pieces).to_pylist()
    for position, (row_group, row) in enumerate(plan.order().slice_rows(part)):
        file, index, _ = store.row_groups[row_group]
        expected = pq.ParquetFile(Path(file)).read_row_group(index).slice(row, 1).to_pylist()[0]
        assert {name: rows[position][name] for name in source.COLUMNS} == {n: expected[n] for n in source.COLUMNS}
        assert rows[position]["position"] == position


@pytest.mark.full
def test_a_file_may_give_a_window_more_than_two_gibibytes(make_plan: MakePlan,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    group = pa.concat_tables(read_window(plan, window_slices(plan, 0, 1)[0], 1)).select(source.COLUMNS).slice(0, 1)
    images = pa.array([[bytes(4_000_000)] * 16], pa.list_(pa.binary()))
    group = group.set_column(group.schema.get_field_index("images"), "images", images)
    monkeypatch.setattr(source, "read_row_groups", lambda *_: pa.concat_tables([group] * 40))  # 2.6 GB
    batches = source._read_file("part-0.parquet", [0])
    assert sum(batch.nbytes for batch in batches) > 2**31
    rows = source._raw_rows(batches, np.arange(40), np.arange(40), 0)
    assert rows["images"].num_chunks == 1 and rows.nbytes > 2**31
    assert [sum(map(len, row)) for row in rows["images"][38:].to_pylist()] == [64_000_000] * 2
