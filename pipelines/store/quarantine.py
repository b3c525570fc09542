"""The quarantine beside a store: what an ingest refused, and why; one Parquet file a batch."""
from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from pipelines.location import Place, place_of
from pipelines.sources.record import Rejected
from pipelines.store.schema import check_columns, iter_batches, open_parquet, write_parquet

QUARANTINE_SCHEMA = pa.schema([
    ("batch_id", pa.string()),
    ("source", pa.string()),
    ("reference", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
])
"""A row of the quarantine: the record's own id or place, the kind of fault, and what is particular to it."""


MAX_TEXT = 500
"""Characters of a reference or a detail in the quarantine; a stranger's file may hold any number."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def refusal(batch_id: str, source: str, bad: Rejected) -> dict[str, str]:
    """The quarantine's row of a refused record; what a terminal would obey, or Parquet not hold, is written out."""
    def shown(text: str) -> str:
        whole = text[:MAX_TEXT].encode(errors="backslashreplace").decode()
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], whole)
    return {"batch_id": batch_id, "source": source, "reference": shown(bad.reference), "reason": bad.reason,
            "detail": shown(bad.detail)}


def quarantine_path(store_path: str | Place) -> Place:
    """The quarantine's folder: `<store>.quarantine`."""
    store = place_of(store_path)
    return store.with_name(store.name + ".quarantine")


def write_quarantine(store_path: str | Place, batch_id: str, tables: Sequence[pa.Table]) -> Place:
    """Write what one batch refused, in place of an earlier attempt's list; where that is nothing, there is none.

    Returns the file.
    """
    file = quarantine_path(store_path) / f"{batch_id}.parquet"
    table = pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *tables])
    if not table.num_rows:
        file.unlink(missing_ok=True)
        return file
    write_parquet(table.sort_by([("source", "ascending"), ("reference", "ascending")]), file)
    return file


def read_quarantine(store_path: str | Place, batch_id: str | None = None) -> pa.Table:
    """The refused records of one batch, or of all; empty where nothing was ever refused."""
    folder = quarantine_path(store_path)
    files: list[Place] = list(folder.glob("*.parquet")) if batch_id is None else [folder / f"{batch_id}.parquet"]
    batches = []
    for file in (file for file in sorted(files, key=str) if file.exists()):
        with open_parquet(file) as opened:
            check_columns(opened.schema_arrow, QUARANTINE_SCHEMA, file)
        batches += list(iter_batches(file, QUARANTINE_SCHEMA.names, rows=1024))
    return pa.Table.from_batches(batches, QUARANTINE_SCHEMA)


def count_reasons(table: pa.Table) -> dict[str, int]:
    """How many records each reason stands for, the commonest first."""
    counts = table["reason"].value_counts().to_pylist()
    return {one["values"]: one["counts"] for one in sorted(counts, key=lambda one: -one["counts"])}
