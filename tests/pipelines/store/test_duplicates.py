"""Ids are unique in a store: the same verdicts as a plain loop over all rows gives."""
from __future__ import annotations

import tempfile
from unittest import mock

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.store import duplicates
from pipelines.store.duplicates import drop_duplicates
from pipelines.store.schema import STORE_SCHEMA, write_parquet
from pipelines.store.table import ImageTextStore

WRITTEN = pa.schema([
    ("file", pa.string()), ("ids", pa.list_(pa.uint64())), ("train", pa.list_(pa.bool_())),
    ("classes", pa.list_(pa.int64())), ("phashes", pa.list_(pa.uint64()))])
ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1), st.sampled_from(["train", "val"])), max_size=6)


def table(rows: list[tuple[int, int, str]]) -> pa.Table:
    return pa.Table.from_pylist([{"sample_id": f"s/{i}", "sha256": str(h), "split": s} for i, h, s in rows],
                                STORE_SCHEMA)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(0, 6), st.tuples(st.integers(0, 1), st.sampled_from(["train", "val"]))),
       st.lists(ROWS.map(sorted), min_size=1, max_size=3), st.booleans())
def test_verdicts_equal_a_plain_loop(there: dict[int, tuple[int, str]], files: list[list[tuple[int, int, str]]],
                                     collide: bool) -> None:
    """Also where different ids have one hash."""
    hashed = (lambda name: int(name[2:]) % 2) if collide else duplicates.id_hash
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(duplicates, "id_hash", hashed):
        store = ImageTextStore(folder)
        if there:
            store.append([table([(i, h, s) for i, (h, s) in there.items()])], "before")
        written = []
        for number, rows in enumerate(files):
            name = f"new-{number}.parquet" if rows else ""
            if rows:
                write_parquet(table(rows), store.path / name)
            written.append({"file": name, "ids": [hashed(f"s/{i}") for i, _, _ in rows],
                            "train": [s == "train" for _, _, s in rows], "classes": [0] * len(rows),
                            "phashes": [None] * len(rows)})
        kept = drop_duplicates(pa.Table.from_pylist(written, WRITTEN), store, "b")

        taken: set[int] = set()
        good, bad = [], []
        for rows in files:
            for i, h, s in rows:
                if i in taken or there.get(i, (h, s)) != (h, s):
                    bad.append(f"s/{i}")
                elif i not in there:
                    good.append((f"s/{i}", str(h), s))
                taken.add(i)
        assert kept.refused["reference"].to_pylist() == bad
        assert set(kept.refused["reason"].to_pylist()) <= {"duplicate id"}
        assert kept.rows == len(good) and kept.duplicates == {}
        if kept.files:
            store.append(kept.files, "b")
        rows = [row for batch in store.iter_batches() for row in batch.to_pylist()] if store.exists() else []
        new = [(r["sample_id"], r["sha256"], r["split"]) for r in rows if int(r["sample_id"][2:]) not in there]
        assert new == good and len(rows) == len(there) + len(good)
