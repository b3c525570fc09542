"""Build a grouped store from an image-text store: read, embed, partition, write."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ashnets.config import TextConfig
from ashnets.processing import caption_class
from pipelines.config import GroupsConfig
from pipelines.grouping import quality
from pipelines.grouping.duplicates import duplicate_labels
from pipelines.grouping.materialise import GroupedStore, existing, materialise
from pipelines.grouping.samples import Samples
from pipelines.store.table import ImageTextStore

SPLIT = "train"

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""


def build_groups(groups: GroupsConfig, text: TextConfig, store: ImageTextStore, seed: int, path: Path,
                 progress: Progress | None = None, version: int | None = None) -> GroupedStore:
    """Disjoint groups of a version's training split (default: the newest version), in the folder `path`.

    Returns at once where the same groups are there already. Needs a running Ray for `groups.method: similar`.
    Raises ValueError where `path` holds something else, where the split has fewer samples than G, and where
    embeddings are not finite.
    """
    version = store.version() if version is None else version
    configuration = configure(groups, text, store, version, seed)
    found = existing(path, configuration)
    if found is not None:
        return found
    samples = Samples.read(store, version, SPLIT)
    members, real, facts = group(groups, text, samples, seed, progress)
    order = np.random.default_rng([seed, 1]).permutation(len(members))
    facts |= {"store": str(store.path), "data_version": version, "split": SPLIT, "seed": seed,
              "method": groups.method, "samples": len(samples), "padding": int((~real).sum())}
    return materialise(samples, members[order], real[order], path, groups.row_group, configuration, facts)


def configure(groups: GroupsConfig, text: TextConfig, store: ImageTextStore, version: int,
              seed: int) -> dict[str, Any]:
    """Everything that shapes the groups, as the manifest keeps it."""
    names = "\n".join(Path(file).name for file in store.files(version))
    shaping: dict[str, Any] = {
        "size": groups.size, "method": groups.method, "row_group": groups.row_group, "seed": seed, "split": SPLIT,
        "data_version": version, "data_files": hashlib.sha256(names.encode()).hexdigest()}
    if groups.method == "similar":
        shaping |= {"neighbours": groups.neighbours, "text": asdict(text)}
    return shaping


def group(groups: GroupsConfig, text: TextConfig, samples: Samples, seed: int, progress: Progress | None = None,
          ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Members (row numbers of `samples.table`), which places are real, and facts for the manifest."""
    from pipelines.grouping import embed, neighbours, partition  # late: torch, faiss and numba take seconds to import

    partition.check_count(len(samples), groups.size)
    captions = samples.table["captions"].to_pylist()
    labels = duplicate_labels(samples.table["image_class"].to_numpy(),
                              [[caption_class(caption) for caption in several] for several in captions])
    if groups.method == "random":
        members, real = partition.random_partition(labels, groups.size, seed)
        return members, real, {"embedding": "none: random groups"}
    embed.check(text)
    vectors = embed.embed_samples(text, captions, seed, progress)
    near, cosines = neighbours.nearest_of_another_class(vectors, labels, max(groups.neighbours, 2 * groups.size))
    members, real = partition.partition(vectors, labels, groups.size, near, cosines)
    found = quality.report(vectors, labels, cosines, members, real, seed)
    return members, real, {"embedding": embed.describe(text), "quality": found}
