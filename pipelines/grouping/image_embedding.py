"""What a trained model sees in the images: its ITC embeddings, kept as Parquet beside the store, only new rows made.

<store>.embeddings/<first 16 digits of the weights' SHA-256>-<split>/ holds a file for every piece of a store file:
`sample_id` and `image_embedding` (unit norm; zeros where the image does not decode). A version's list of files,
v<version>.json, is written last. Pieces that are there stay, so that an interrupted embedding goes on, and a version
that grew costs its new rows only.
"""
from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from jaxtyping import Float32

from ashnets.weights_file import trained_steps
from pipelines.disk import demand_room, full_disk_told
from pipelines.embedding.task import decode, load_model, vector_column
from pipelines.errors import UserError, is_users_mistake
from pipelines.files import write_atomically
from pipelines.grouping.embed import Progress
from pipelines.grouping.samples import Samples
from pipelines.location import Place
from pipelines.model_source import CONFIG, WEIGHTS
from pipelines.store.parts import Part
from pipelines.store.schema import iter_batches, write_parquet

FORMAT = 1
COLUMNS = ("sample_id", "image", "split")
EMBEDDING = "embedding the images"


@dataclass(frozen=True)
class Piece:
    """A part of one of the store's files, its rows of the split, and the file that their embeddings go to."""

    part: Part
    rows: int
    to: Place


def weights_hash(export: Path) -> str:
    """SHA-256 of the model's weights."""
    with open(export / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(export: Path) -> str:
    """The embedding in words, for the manifest."""
    steps = trained_steps(export / WEIGHTS)
    return f"images by a trained model's ITC projection ({'unknown' if steps is None else steps} steps)"


def embed_images(export: Path, samples: Samples, batch: int,
                 progress: Progress | None = None) -> Float32[np.ndarray, "N E"]:
    """Unit-norm image embeddings of `samples` in the order of their table; zeros where an image does not decode.

    Needs a running Ray. Raises UserError where the weights do not fit their configuration or are broken or the disk is
    full, and ValueError where the kept embeddings are not those of the store.
    """
    pieces = pieces_of(export, samples)
    folder, size = pieces[0].to.parent, _size(export)
    _embed(missing(pieces, export), export, samples.split, batch, progress)
    vectors = _read(pieces, samples, size)
    listing = {"format": FORMAT, "model": str(export), "weights_sha256": weights_hash(export), "embedding": size,
               "store": str(samples.store.path), "version": samples.version, "split": samples.split,
               "rows": len(samples), "unreadable": int((~vectors.any(axis=1)).sum()),
               "files": [piece.to.name for piece in pieces]}
    with full_disk_told(_disk(folder), EMBEDDING, None):
        write_atomically(folder / f"v{samples.version}.json", json.dumps(listing, indent=1).encode())
    return vectors


def pieces_of(export: Path, samples: Samples) -> list[Piece]:
    """The pieces of the samples' store, and where this model's embeddings of them lie or will lie."""
    folder = samples.store.path.with_name(f"{samples.store.path.name}.embeddings") / (
        f"{weights_hash(export)[:16]}-{samples.split}")
    return [Piece(part, rows, folder / f"{Path(part.file).stem}-{part.row_groups[0]:06d}.parquet")
            for part, rows in samples.parts]


def missing(pieces: Sequence[Piece], export: Path) -> list[Piece]:
    """The pieces whose embeddings are not there yet; UserError where the disk has no room for them."""
    left = [piece for piece in pieces if not piece.to.exists()]
    if left and isinstance(left[0].to, Path):
        demand_room(left[0].to.parent, EMBEDDING, 4 * _size(export) * sum(piece.rows for piece in left))
    return left


def _embed(pieces: Sequence[Piece], export: Path, split: str, batch: int, progress: Progress | None) -> None:
    """Write the pieces' files: Ray Data over a pool of actors, each of which holds the model."""
    if not pieces:
        return
    gpus = int(ray.cluster_resources().get("GPU", 0))
    # One CPU stays free for the blocks that the actors read from.
    most = gpus or max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)
    dataset = ray.data.range(len(pieces), override_num_blocks=len(pieces)).map_batches(
        Embedder, fn_constructor_args=(list(pieces), export, split, batch), batch_size=1, num_cpus=1,
        num_gpus=1 if gpus else None, compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(pieces))))
    dataset.context.enable_progress_bars = False
    done = 0
    for found in dataset.iter_batches(batch_size=None):
        for mistake in found["mistake"]:
            if mistake:
                raise UserError(str(mistake))
            done += 1
            if progress is not None:
                progress("embedding images", done, len(pieces))


class Embedder:
    """An actor that embeds pieces; the model is loaded with the first, where a mistake in it can be told."""

    def __init__(self, pieces: list[Piece], export: Path, split: str, batch: int) -> None:
        self._pieces, self._export, self._split, self._batch = pieces, export, split, batch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def __call__(self, numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed the pieces of these numbers (Ray Data's batch); what the user must mend, or nothing, for each."""
        return {"mistake": np.array([self.embed(number) for number in numbers["id"]], dtype=object)}

    def embed(self, number: int) -> str:
        """Write one piece. A user's mistake comes back as text: Ray would bury the exception under its own."""
        piece = self._pieces[number]
        try:
            with full_disk_told(_disk(piece.to.parent), EMBEDDING, None):
                self._write(piece)
        except Exception as error:
            if not is_users_mistake(error):
                raise
            return str(error)
        return ""

    def _write(self, piece: Piece) -> None:
        model, processor = load_model(str(self._export), self._device)
        size = int(model.config.model["embedding"])
        ids: list[str] = []
        vectors: list[Float32[np.ndarray, "n E"]] = [np.zeros((0, size), np.float32)]
        for batch in iter_batches(piece.part.file, COLUMNS, piece.part.row_groups, rows=self._batch):
            rows = [row for row in batch.to_pylist() if row["split"] == self._split]
            good, pixels = decode(rows, processor, {})
            found = np.zeros((len(rows), size), np.float32)
            if good:
                place = {row["sample_id"]: number for number, row in enumerate(rows)}
                with torch.inference_mode():
                    embedded = model.encode_image(torch.stack(pixels).to(self._device)).float().cpu().numpy()
                found[[place[row["sample_id"]] for row in good]] = embedded
            ids += [row["sample_id"] for row in rows]
            vectors.append(found)
        write_parquet(pa.table({"sample_id": pa.array(ids, pa.string()),
                                "image_embedding": vector_column(np.concatenate(vectors))}), piece.to)


def _size(export: Path) -> int:
    return int(json.loads((export / CONFIG).read_text())["model"]["embedding"])


def _disk(folder: Place) -> Path:
    """Where a file is written before it lies in `folder`: object storage gets it from a temporary one."""
    return folder if isinstance(folder, Path) else Path(tempfile.gettempdir())


def _read(pieces: Sequence[Piece], samples: Samples, size: int) -> Float32[np.ndarray, "N E"]:
    vectors, seen = np.empty((len(samples), size), np.float32), 0
    folder = pieces[0].to.parent
    differs = (f"{folder} holds embeddings of other rows than {samples.store.path}, version {samples.version}: the "
               "store changed since it was embedded; remove that folder and start again")
    for piece in pieces:
        for batch in iter_batches(piece.to, ("sample_id", "image_embedding"), rows=4096):
            rows: Any = samples.row_of_reading[seen:seen + len(batch)]
            ids = samples.table["sample_id"].take(pa.array(rows)).combine_chunks()
            if not batch["sample_id"].equals(ids) or batch["image_embedding"].type.list_size != size:
                raise ValueError(differs)
            vectors[rows] = batch["image_embedding"].flatten().to_numpy().reshape(-1, size)
            seen += len(batch)
    if seen != len(samples):
        raise ValueError(differs)
    return vectors
