"""Embeddings of a store's samples, kept as Parquet: only new rows are made.

<home>/<first 16 digits of the recipe's key>-<split>/ holds a file for every piece of a store file: `sample_id` and the
recipe's column (unit norm; zeros where there is nothing to embed). A version's list of files, v<version>.json, is
written last. Pieces that are there stay, so that an interrupted embedding goes on, and a version that grew costs its
new rows only.
"""
from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from jaxtyping import Float32

from pipelines.disk import demand_room, full_disk_told, is_full
from pipelines.embedding.task import vector_column
from pipelines.errors import UserError, is_users_mistake
from pipelines.files import write_atomically
from pipelines.grouping.materialise import Progress
from pipelines.grouping.samples import Samples
from pipelines.location import Place
from pipelines.store.parts import Part
from pipelines.store.schema import iter_batches, write_parquet

FORMAT = 1
KEY_DIGITS = 16
READ_ROWS = 4096

Embed = Callable[[list[dict[str, Any]]], Float32[np.ndarray, "n E"]]
"""Unit-norm vectors of rows of the store, zeros where a row has nothing to embed."""


@dataclass(frozen=True)
class Recipe:
    """How vectors are made of samples."""

    what: str
    """What of a sample is embedded, such as `images`."""
    key: str
    """SHA-256 of everything that the vectors depend on beside the samples."""
    size: int
    """E: numbers of a vector."""
    column: str
    reads: tuple[str, ...]
    """Columns of the store that are embedded."""
    rows: int
    """Rows that are embedded at once."""
    load: Callable[[str], Embed]
    """Makes ready to embed on a device; a process that calls it again gets the same model."""
    facts: Mapping[str, Any]
    """For the list of a version's files."""


@dataclass(frozen=True)
class Piece:
    """A part of one of the store's files, its rows of the split, and the file that their embeddings go to."""

    part: Part
    rows: int
    to: Place


def home_of(store: Place, groups: Path) -> Place:
    """Where embeddings of a store are kept: beside it, or beside the groups where nothing can be written there."""
    home = store.with_name(f"{store.name}.embeddings")
    probe = home / f"writable-{uuid.uuid4().hex[:8]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"?")
    except (OSError, UserError) as error:
        if not is_full(error):
            return groups.with_name(f"{groups.name}.embeddings")
    probe.unlink(missing_ok=True)  # a full disk leaves it empty
    return home


def embeddings(recipe: Recipe, samples: Samples, home: Place, progress: Progress | None = None,
               ) -> Float32[np.ndarray, "N E"]:
    """Vectors of `samples` in the order of their table: what is kept in `home`, and what is made now and kept there.

    Needs a running Ray. Raises UserError where the recipe's model will not do or the disk is full, and ValueError where
    the kept embeddings are not those of the store.
    """
    pieces = pieces_of(recipe, samples, home)
    folder = pieces[0].to.parent
    _make(missing(pieces, recipe), recipe, samples.split, progress)
    vectors = _read(pieces, samples, recipe)
    listing = {"format": FORMAT, **recipe.facts, "embedding": recipe.size, "store": str(samples.store.path),
               "version": samples.version, "split": samples.split, "rows": len(samples),
               "without_embedding": int((~vectors.any(axis=1)).sum()), "files": [piece.to.name for piece in pieces]}
    with full_disk_told(_disk(folder), _doing(recipe), None):
        write_atomically(folder / f"v{samples.version}.json", json.dumps(listing, indent=1).encode())
    return vectors


def pieces_of(recipe: Recipe, samples: Samples, home: Place) -> list[Piece]:
    """The pieces of the samples' store, and where their embeddings lie or will lie."""
    folder = home / f"{recipe.key[:KEY_DIGITS]}-{samples.split}"
    return [Piece(part, rows, folder / f"{Path(part.file).stem}-{part.row_groups[0]:06d}.parquet")
            for part, rows in samples.parts if rows]


def missing(pieces: Sequence[Piece], recipe: Recipe) -> list[Piece]:
    """The pieces whose embeddings are not there yet; UserError where the disk has no room for them."""
    left = [piece for piece in pieces if not piece.to.exists()]
    if left and isinstance(left[0].to, Path):
        demand_room(left[0].to.parent, _doing(recipe), 4 * recipe.size * sum(piece.rows for piece in left))
    return left


def _make(pieces: Sequence[Piece], recipe: Recipe, split: str, progress: Progress | None) -> None:
    """Write the pieces' files by Ray Data: on GPUs by a pool of actors, each of which holds the model.

    On CPUs by tasks, whose processes keep the model too; one that had a GPU ends with its task.
    """
    if not pieces:
        return
    gpus = int(ray.cluster_resources().get("GPU", 0))
    numbers = ray.data.from_arrow([pa.table({"number": [number]}) for number in range(len(pieces))])
    if gpus:
        dataset = numbers.map_batches(
            Embedder, fn_constructor_args=(list(pieces), recipe, split), batch_size=1, num_gpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(gpus, len(pieces))))
    else:
        dataset = numbers.map_batches(Embedder(list(pieces), recipe, split).__call__, batch_size=1, num_cpus=1)
    dataset.context.enable_progress_bars = False
    done = 0
    for found in dataset.iter_batches(batch_size=None):
        for mistake in found["mistake"]:
            if mistake:
                raise UserError(str(mistake))
            done += 1
            if progress is not None:
                progress(f"embedding {recipe.what}", done, len(pieces))


class Embedder:
    """Embeds pieces; the model is loaded with the first, where a mistake in it can be told."""

    def __init__(self, pieces: list[Piece], recipe: Recipe, split: str) -> None:
        self._pieces, self._recipe, self._split = pieces, recipe, split
        self._embed: Embed | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed the pieces of these numbers (Ray Data's batch); what the user must mend, or nothing, for each."""
        return {"mistake": np.array([self.embed(number) for number in batch["number"]], dtype=object)}

    def embed(self, number: int) -> str:
        """Write one piece. A user's mistake comes back as text: Ray would bury the exception under its own."""
        piece = self._pieces[number]
        try:
            with full_disk_told(_disk(piece.to.parent), _doing(self._recipe), None):
                self._write(piece)
        except Exception as error:
            if not is_users_mistake(error):
                raise
            return str(error)
        return ""

    def _write(self, piece: Piece) -> None:
        recipe = self._recipe
        if self._embed is None:
            self._embed = recipe.load("cuda" if torch.cuda.is_available() else "cpu")
        ids: list[str] = []
        vectors: list[Float32[np.ndarray, "n E"]] = [np.zeros((0, recipe.size), np.float32)]
        columns = ("sample_id", "split", *recipe.reads)
        for batch in iter_batches(piece.part.file, columns, piece.part.row_groups, rows=recipe.rows):
            rows = [row for row in batch.to_pylist() if row["split"] == self._split]
            if rows:
                vectors.append(self._embed(rows))
            ids += [row["sample_id"] for row in rows]
        write_parquet(pa.table({"sample_id": pa.array(ids, pa.string()),
                                recipe.column: vector_column(np.concatenate(vectors))}), piece.to)


def _doing(recipe: Recipe) -> str:
    return f"embedding the {recipe.what}"


def _disk(folder: Place) -> Path:
    """Where a file is written before it lies in `folder`: object storage gets it from a temporary one."""
    return folder if isinstance(folder, Path) else Path(tempfile.gettempdir())


def _read(pieces: Sequence[Piece], samples: Samples, recipe: Recipe) -> Float32[np.ndarray, "N E"]:
    vectors, seen = np.empty((len(samples), recipe.size), np.float32), 0
    folder = pieces[0].to.parent
    differs = (f"{folder} holds embeddings of other rows than {samples.store.path}, version {samples.version}: the "
               "store changed since it was embedded; remove that folder and start again")
    for piece in pieces:
        for batch in iter_batches(piece.to, ("sample_id", recipe.column), rows=READ_ROWS):
            rows: Any = samples.row_of_reading[seen:seen + len(batch)]
            ids = samples.table["sample_id"].take(pa.array(rows)).combine_chunks()
            if not batch["sample_id"].equals(ids) or batch[recipe.column].type.list_size != recipe.size:
                raise ValueError(differs)
            vectors[rows] = batch[recipe.column].flatten().to_numpy().reshape(-1, recipe.size)
            seen += len(batch)
    if seen != len(samples):
        raise ValueError(differs)
    return vectors
