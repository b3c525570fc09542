"""The quarantine beside a store: what an ingest refused, and why; one Parquet file a batch."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from pipelines.location import Place, place_of
from pipelines.store.schema import check_columns, iter_batches, open_parquet, write_parquet

QUARANTINE_SCHEMA = pa.schema([
    ("batch_id", pa.string()),
    ("source", pa.string()),
    ("reference", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
])
"""A row of the quarantine: the record's own id or place, the kind of fault, and what is particular to it."""


def quarantine_path(store_path: str | Place) -> Place:
    """The quarantine's folder: `<store>.quarantine`."""
    store = place_of(store_path)
    return store.with_name(store.name + ".quarantine")


def write_quarantine(store_path: str | Place, batch_id: str, tables: Sequence[pa.Table]) -> Place:
    """Write what one batch refused; an earlier attempt's list of the same batch is replaced. Returns the file."""
    file = quarantine_path(store_path) / f"{batch_id}.parquet"
    table = pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *tables])
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
    return dict(Counter(table["reason"].to_pylist()).most_common())
