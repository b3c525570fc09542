"""The image-text store: Parquet files under a Delta log, so that every append is one atomic, numbered version."""
from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.location import Place, place_of, reach, reaching, size_of, storage_options
from pipelines.store.schema import STORE_SCHEMA, check_columns, iter_batches, open_parquet, write_parquet

COMMIT_ATTEMPTS = 5
BATCH = "ashnets.batch_id"
"""The key of a batch's id in its commit's entry of the log."""


def file_batches(file: str, columns: Sequence[str] | None = None, split: str | None = None,
                 row_groups: Sequence[int] | None = None, rows: int = 256) -> Iterator[pa.RecordBatch]:
    """The rows of one of a store's files (of one split, of some row groups), in batches of at most `rows`.

    ValueError names a file whose columns are not the store's.
    """
    wanted = list(columns) if columns is not None else STORE_SCHEMA.names
    needed = wanted if split is None or "split" in wanted else [*wanted, "split"]
    with open_parquet(file) as opened:
        check_columns(opened.schema_arrow, STORE_SCHEMA, file)
    for batch in iter_batches(file, needed, row_groups, rows):
        if split is not None:
            batch = batch.filter(pc.equal(batch["split"], split))
        if batch.num_rows:
            yield batch.select(wanted)


class StoreMoved(Exception):
    """The store has another version by now than the one that an append was to follow."""


class ImageTextStore:
    """A folder, here or in object storage, with the store's Parquet files and their log; nothing is read before it is
    asked for.

    Raises ValueError for a path that holds a '%' and for an address that cannot hold a store, and later UserError for
    a bucket that cannot be reached.
    """

    def __init__(self, path: str | Place) -> None:
        self.path = place_of(path)
        self._uri = str(self.path)
        if "%" in self._uri:
            raise ValueError(f"{self.path}: a store's path must not hold '%', which Delta takes for an escape")

    def exists(self) -> bool:
        """Whether the folder holds a store with at least one committed batch."""
        return self._has_log() and bool(self.files())

    def version(self) -> int:
        """The newest version's number, from 0; FileNotFoundError where there is no store."""
        return int(self._log().version())

    def newest(self) -> int:
        """`version()`, or -1 where there is no store."""
        return self.version() if self._has_log() else -1

    def files(self, version: int | None = None) -> list[str]:
        """Absolute paths, or addresses, of the Parquet files of a version (default: the newest), sorted.

        ValueError where the log names a file outside the store's folder.
        """
        names = pa.table(self._log(version).get_add_actions(flatten=True))["path"].to_pylist()
        for name in names:
            if "/" in name:
                raise ValueError(f"{self.path}: its log names {name}, which does not lie in its folder: a stranger's "
                                 "table is no source of files here; ingest it as Parquet")
        return sorted(str(self.path / name) for name in names)

    def has_batch(self, batch_id: str) -> bool:
        """Whether a batch of this name has been appended."""
        return self._has_log() and self._log().transaction_version(batch_id) is not None

    def batches(self) -> dict[str, dict[str, Any]]:
        """Delta's entry of every batch's commit (`version, timestamp, ...`, and its notes), the oldest first."""
        entries = reversed(self._log().history())
        return {entry[BATCH]: entry for entry in entries if BATCH in entry}

    def notes(self, batch_id: str) -> dict[str, Any]:
        """What was noted when the batch was appended; empty where nothing was."""
        return self.batches().get(batch_id, {})

    def append(self, files_or_tables: Sequence[str | Place | pa.Table], batch_id: str,
               notes: Mapping[str, str] | None = None, follows: int | None = None) -> int:
        """Append everything given as one version; returns the number of a version that holds it.

        A file must lie in the store's folder already (`write_parquet` it there); it stays invisible until this
        commit. Tables are written first, sorted by sample_id. `notes` go into the log beside the batch's id (see
        `notes`). A `batch_id` that is there already adds nothing. Two
        processes that append at the same time both land, or, with the same `batch_id`, one of them does. With
        `follows`, the version (`newest`) that the caller has looked at, StoreMoved is raised where another has come
        since. Raises ValueError where a file's columns are not the store's.
        """
        if self.has_batch(batch_id):
            return self.version()
        files = [self.write(item, batch_id) if isinstance(item, pa.Table) else place_of(item)
                 for item in files_or_tables]
        actions: list[AddAction | RemoveAction] = [self._add_action(file) for file in files]
        failure: Exception | None = None
        for _ in range(COMMIT_ATTEMPTS):
            try:
                self._commit(actions, batch_id, notes or {}, follows)
            except (DeltaError, OSError) as error:  # whether it has landed is told by the log alone
                failure = error
            if self.has_batch(batch_id):
                return self.version()
            if follows is not None and self.newest() > max(follows, 0):
                raise StoreMoved(f"{self.path}: version {self.newest()} has come after {follows}")
        raise RuntimeError(f"{self.path}: batch {batch_id} could not be committed in {COMMIT_ATTEMPTS} attempts"
                           ) from failure

    def iter_batches(self, columns: Sequence[str] | None = None, split: str | None = None,
                     version: int | None = None, rows: int = 256) -> Iterator[pa.RecordBatch]:
        """The rows of a version (of one split), in batches of at most `rows`: files in order, and the order in them.

        The same version gives the same order always. ValueError names a file whose columns are not the store's.
        """
        for file in self.files(version):
            yield from file_batches(file, columns, split, rows=rows)

    def count(self, split: str | None = None, version: int | None = None) -> int:
        """Rows of a version, or of one split of it."""
        return sum(batch.num_rows for batch in self.iter_batches(["split"], split, version, rows=65_536))

    def _has_log(self) -> bool:
        reach(self.path)
        with reaching(self.path):
            return bool(DeltaTable.is_deltatable(self._uri, self._options()))

    def _log(self, version: int | None = None) -> DeltaTable:
        if not self._has_log():
            raise FileNotFoundError(f"{self.path}: there is no image-text store here; name another data.store, "
                                    "or ingest into this one first")
        with reaching(self.path):
            log = DeltaTable(self._uri, version=version, storage_options=self._options())
        # Deletion vectors and renamed columns stand in the log alone: the files would be read with rows that are gone.
        if log.protocol().min_reader_version > 1:
            raise ValueError(f"{self.path}: another tool has changed how this store is read (Delta's reader version "
                             f"{log.protocol().min_reader_version}; 1 is read here): rewrite it without such features")
        return log

    def _options(self) -> dict[str, str] | None:
        return storage_options(self.path)

    def write(self, table: pa.Table, batch_id: str) -> Place:
        """Write the table, sorted by sample_id, into the store's folder; `append` the file to make it visible."""
        check_columns(table.schema, STORE_SCHEMA, "table to append")
        file = self.path / f"{batch_id}-{uuid.uuid4().hex[:12]}.parquet"
        write_parquet(table.select(STORE_SCHEMA.names).sort_by("sample_id"), file)
        return file

    def _add_action(self, file: Place) -> AddAction:
        assert file.parent == self.path, f"{file} does not lie in the store"
        with open_parquet(file) as opened:
            check_columns(opened.schema_arrow, STORE_SCHEMA, file)
            statistics = json.dumps({"numRecords": opened.metadata.num_rows})
        return AddAction(file.name, size_of(file), {}, int(time.time() * 1000), True, statistics)

    def _commit(self, actions: list[AddAction | RemoveAction], batch_id: str, notes: Mapping[str, str],
                follows: int | None) -> None:
        schema = Schema.from_arrow(STORE_SCHEMA)
        # Without a retry Delta commits the version behind the snapshot's, or nothing.
        properties = CommitProperties(app_transactions=[Transaction(batch_id, 1)],
                                      custom_metadata={**notes, BATCH: batch_id},
                                      max_commit_retries=None if follows is None else 0)
        # An empty version comes first: racing creations that add files at once would all land, the same batch twice.
        if not self._has_log():
            DeltaTable.create(self._uri, schema, mode="ignore", storage_options=self._options(),
                              configuration={"delta.enableExpiredLogCleanup": "false"})  # runs go on with old versions
        # One snapshot for the look and the commit: Delta refuses what conflicts with commits since the snapshot, but
        # accepts a batch again that the snapshot holds already.
        snapshot = self._log(None if follows is None else max(follows, 0))
        if snapshot.transaction_version(batch_id) is None:
            snapshot.create_write_transaction(actions, "append", schema, commit_properties=properties)
