"""Embed a store: every image and caption through a trained model, in parallel (Ray Data), to a folder of Parquet."""
from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.data

from ashnets.weights_file import trained_steps
from pipelines.disk import FULL, full_disk_told, is_full
from pipelines.embedding.settings import EmbedConfig
from pipelines.embedding.task import Done, Work, embed_part
from pipelines.errors import UserError, is_users_mistake
from pipelines.files import sync, write_atomically
from pipelines.location import folder_of
from pipelines.model_source import CONFIG, WEIGHTS, complete_export
from pipelines.store.parts import Part, parts_of
from pipelines.store.table import ImageTextStore

MANIFEST = "embeddings.json"
FORMAT = 1

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total) on the driver."""


def check(config: EmbedConfig, root: Path) -> tuple[Path, ImageTextStore]:
    """The export and the store that `config` names; UserError where something will not do, before Ray starts."""
    if not config.to:
        raise UserError("to is empty: name the folder to write, to=FOLDER")
    if folder_of("to", config.to, "embeddings").exists():
        raise UserError(f"to={config.to} exists already: name a folder that does not, or remove it first")
    export = export_with_embeddings(config.model, root)
    store = ImageTextStore(config.data.store or root / "data" / "demo")
    if not store.exists():
        raise UserError(f"data.store={config.data.store}: {store.path} holds no image-text store: name one that does")
    if config.data.split and not store.count(config.data.split):
        raise UserError(f"data.split={config.data.split}: {store.path} has no sample of that split; it has "
                        f"{_splits(store)}")
    return export, store


def export_with_embeddings(model: str, root: Path) -> Path:
    """The export that `model=` names; UserError where there is none, or one that was trained without ITC."""
    export = complete_export("model", model, root)
    tasks = json.loads((export / CONFIG).read_text())["tasks"]
    if not tasks["itc"]["weight"]:
        raise UserError(f"model={model}: it was trained without ITC (tasks.itc.weight was 0), so it has no "
                        "embeddings: name another model")
    return export


def embed(config: EmbedConfig, export: Path, store: ImageTextStore, progress: Progress | None = None) -> dict[str, Any]:
    """Write the folder `config.to`, whole or not at all, and return its manifest; Ray must be connected.

    Raises UserError where the store is damaged, the folder cannot be written or its disk is full.
    """
    to = folder_of("to", config.to, "embeddings")
    folder = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"to={config.to} cannot be made ({error.strerror}): name a writable folder") from error
    with full_disk_told(to.parent, "the embeddings", None):
        try:
            manifest = _fill(folder, config, export, store, progress)
            folder.rename(to)
            sync(to.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _fill(folder: Path, config: EmbedConfig, export: Path, store: ImageTextStore,
          progress: Progress | None) -> dict[str, Any]:
    """Write all files into `folder`, the manifest last."""
    version = store.version()
    done = _run(parts_of(store.files(version)), Work(export, folder, config.data.split, config.batch), progress)
    manifest = _manifest(config, export, store, version, done)
    left_out = {sample_id: reason for one in done for sample_id, reason in one.left_out.items()}
    write_atomically(folder / "left_out.jsonl", "".join(
        json.dumps({"sample_id": sample_id, "reason": reason}) + "\n"
        for sample_id, reason in sorted(left_out.items())).encode())
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _run(parts: list[Part], work: Work, progress: Progress | None) -> list[Done]:
    """All parts, each in its own task; in the order of the parts."""
    gpus = 1 if ray.cluster_resources().get("GPU") else None
    dataset = ray.data.range(len(parts), override_num_blocks=max(1, len(parts))).map_batches(
        partial(_task, parts=parts, work=work), batch_size=1, num_cpus=1, num_gpus=gpus)
    dataset.context.enable_progress_bars = False
    done: list[Done] = []
    for batch in dataset.iter_batches(batch_size=None):
        for text in batch["done"]:
            done.append(Done(**json.loads(str(text))))
            if mistake := done[-1].mistake:
                raise OSError(errno.ENOSPC, FULL) if mistake == FULL else UserError(mistake)
            if progress is not None:
                progress("embedding", len(done), len(parts))
    return sorted(done, key=lambda one: one.part)


def _task(numbers: dict[str, np.ndarray], parts: list[Part], work: Work) -> dict[str, np.ndarray]:
    return {"done": np.array([json.dumps(asdict(_try(parts[number], work))) for number in numbers["id"]], dtype=object)}


def _try(part: Part, work: Work) -> Done:
    """What can be mended comes back as text: Ray would bury the exception under its own."""
    try:
        return embed_part(part, work)
    except Exception as error:
        if not (is_full(error) or is_users_mistake(error)):
            raise
        return Done(part.number, 0, 0, {}, mistake=FULL if is_full(error) else str(error))


def _manifest(config: EmbedConfig, export: Path, store: ImageTextStore, version: int,
              done: Sequence[Done]) -> dict[str, Any]:
    settings = json.loads((export / CONFIG).read_text())
    return {
        "format": FORMAT, "model": str(export), "model_steps": trained_steps(export / WEIGHTS),
        "embedding": settings["model"]["embedding"], "store": str(store.path), "version": version,
        "split": config.data.split, "rows": sum(one.rows for one in done),
        "captions": sum(one.captions for one in done),
        "left_out": dict(Counter(reason for one in done for reason in one.left_out.values())),
        "files": [f"part-{one.part:05d}.parquet" for one in done if one.rows]}


def _splits(store: ImageTextStore) -> str:
    return ", ".join(sorted({split for batch in store.iter_batches(["split"], rows=65_536)
                             for split in batch["split"].to_pylist()}))
