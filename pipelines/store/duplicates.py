"""Sample ids are unique in a store: find the rows of a new batch whose id is taken, and take them out of its files."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.store.quarantine import QUARANTINE_SCHEMA
from pipelines.store.schema import read_row_groups, row_group_sizes, write_parquet
from pipelines.store.table import ImageTextStore


def content_of(split: str, sha256: str) -> str:
    """What two rows with one id must have in common to count as the same row."""
    return f"{split}/{sha256}"


def drop_duplicates(written: pa.Table, store: ImageTextStore, batch_id: str) -> tuple[list[Path], int, pa.Table]:
    """The batch's files without the rows whose id is taken, their number of rows, and the refusals.

    `written` has a row a file (`file`, `sample_ids`, `contents` in the file's order). The first of several rows with
    one id stays. An id that the store has with the same image and split is no fault: the row is there already.
    """
    written = written.filter(pc.not_equal(written["file"], ""))
    lengths = pc.list_value_length(written["sample_ids"]).to_numpy()
    ids = written["sample_ids"].combine_chunks().flatten()
    contents = written["contents"].combine_chunks().flatten()

    positions = pa.table({"id": ids, "position": np.arange(len(ids))})
    first = positions.group_by("id").aggregate([("position", "min")])["position_min"].to_numpy()
    refused = np.ones(len(ids), bool)
    refused[first] = False
    known_ids, known_contents = _known(store)
    at = pc.index_in(ids, known_ids)
    there = pc.is_valid(at).to_numpy(zero_copy_only=False)
    same = pc.fill_null(pc.equal(known_contents.take(at), contents), False)
    refused |= there & ~same.to_numpy(zero_copy_only=False)

    files, kept_rows = [], 0
    for name, start, length in zip(written["file"].to_pylist(), np.cumsum(lengths) - lengths, lengths, strict=True):
        keep = ~(refused | there)[start:start + length]
        kept_rows += int(keep.sum())
        if keep.any():
            files.append(_keep(store.path / name, keep))
    return files, kept_rows, _refusals(ids.filter(pa.array(refused)), batch_id)


def _known(store: ImageTextStore) -> tuple[pa.Array, pa.Array]:
    """Ids and contents of all rows of the store."""
    schema = pa.schema([("sample_id", pa.string()), ("split", pa.string()), ("sha256", pa.string())])
    batches = list(store.iter_batches(schema.names, rows=65_536)) if store.exists() else []
    known = pa.Table.from_batches(batches, schema)
    contents = pc.binary_join_element_wise(known["split"], known["sha256"], "/")
    return known["sample_id"].combine_chunks(), contents.combine_chunks()


def _keep(file: Path, keep: np.ndarray) -> Path:
    """Rewrite the file with the chosen rows, unless that is all of them."""
    if not keep.all():
        table = read_row_groups(file, range(len(row_group_sizes(file))))
        write_parquet(table.filter(pa.array(keep)), file)
    return file


def _refusals(ids: pa.Array, batch_id: str) -> pa.Table:
    return pa.Table.from_pylist([
        {"batch_id": batch_id, "source": sample_id.split("/")[0], "reference": sample_id, "reason": "duplicate id",
         "detail": "this batch or the store has another row under this id"} for sample_id in ids.to_pylist()
    ], QUARANTINE_SCHEMA)
