"""Build a grouped store from an image-text store: read, embed, find duplicates, partition, write."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ashnets.config import TextConfig
from ashnets.processing import caption_class
from pipelines.config import GroupsConfig
from pipelines.grouping import quality
from pipelines.grouping.duplicates import check_cosine, describe, duplicate_labels, unite
from pipelines.grouping.materialise import GroupedStore, Progress, building_folder, check_room, existing, materialise
from pipelines.grouping.samples import Samples
from pipelines.location import Place
from pipelines.store.table import ImageTextStore

SPLIT = "train"


@dataclass(frozen=True)
class Source:
    """What samples are compared by: a trained model's image embeddings, or without one the text's BERT."""

    text: TextConfig
    model: Path | None = None
    """The folder of a complete export."""
    batch: int = 64
    """Images that the model embeds at once."""
    home: Place | None = None
    """Where embeddings are kept (default: kept.home_of)."""


@dataclass(frozen=True)
class Grouped:
    """Groups of row numbers of `samples.table`, whose image classes are united where samples look the same."""

    samples: Samples
    members: np.ndarray
    real: np.ndarray
    facts: dict[str, Any]
    cosines: dict[str, np.ndarray]
    """For the report: `members` [n, G], `random` and `bound` [N]; empty where nothing was compared."""


def build_groups(groups: GroupsConfig, text: TextConfig, store: ImageTextStore, seed: int, path: Path,
                 progress: Progress | None = None, version: int | None = None, model: Path | None = None,
                 batch: int = 64, home: Place | None = None) -> GroupedStore:
    """Disjoint groups of a version's training split (default: the newest version), in the folder `path`.

    Samples are compared by the image embeddings of the export `model`, or without one by the text features of `text`;
    both are kept in the folder `home` (default: beside the store, or beside `path` where nothing can be written there).
    Returns at once where the same groups are there already. Needs a running Ray for `groups.method: similar`.
    Raises ValueError where `path` holds something else, where the split has fewer samples than G, where embeddings
    are not finite, and where `groups.duplicate_cosine` makes one picture of most samples; UserError where the disk is
    full, before the work where that can be seen.
    """
    version = store.version() if version is None else version
    configuration = configure(groups, text, store, version, seed, model)
    found = existing(path, configuration)
    if found is not None:
        return found
    samples = Samples.read(store, version, SPLIT)
    check_room(path, samples)
    done = group(groups, Source(text, model, batch, home), samples, seed, path, progress)
    order = np.random.default_rng([seed, 1]).permutation(len(done.members))
    facts = done.facts | {"store": str(store.path), "data_version": version, "split": SPLIT, "seed": seed,
                          "method": groups.method, "samples": len(samples), "padding": int((~done.real).sum())}

    def finish(built: GroupedStore) -> None:
        from pipelines.report.grouping_page import write_page  # late: matplotlib takes a second to import
        if done.cosines:
            write_page(built, {**done.cosines, "members": done.cosines["members"][order]}, path)

    return materialise(done.samples, done.members[order], done.real[order], path, groups.row_group, configuration,
                       facts, finish, progress)


def configure(groups: GroupsConfig, text: TextConfig, store: ImageTextStore, version: int, seed: int,
              model: Path | None = None) -> dict[str, Any]:
    """Everything that shapes the groups, as the manifest keeps it."""
    names = "\n".join(Path(file).name for file in store.files(version))
    shaping: dict[str, Any] = {
        "size": groups.size, "method": groups.method, "row_group": groups.row_group, "seed": seed, "split": SPLIT,
        "data_version": version, "data_files": hashlib.sha256(names.encode()).hexdigest()}
    if groups.method == "random":
        return shaping
    shaping["neighbours"] = groups.neighbours
    # Left out at their defaults: groups that were built before these settings existed stay valid.
    shaping |= {name: getattr(groups, name) for name in ("duplicate_cosine", "cell")
                if getattr(groups, name) != getattr(GroupsConfig(), name)}
    if model is None:
        return shaping | {"text": asdict(text)}
    from pipelines.grouping.image_embedding import weights_hash  # late: torch and ray take seconds to import
    return shaping | {"model": weights_hash(model)}


def group(groups: GroupsConfig, source: Source, samples: Samples, seed: int, path: Path,
          progress: Progress | None = None) -> Grouped:
    """The groups of `samples`, with work files beside `path` where there are several cells; errors: `build_groups`."""
    from pipelines.grouping import partition  # late: numba takes a second to import

    partition.check_count(len(samples), groups.size)
    if groups.method == "random":
        members, real = partition.random_partition(_labels(samples), groups.size, seed)
        return Grouped(samples, members, real, {"embedding": "none: random groups"}, {})
    vectors, facts = embed(source, samples, seed, path, progress)
    if len(samples) > groups.cell:
        return _in_cells(groups, vectors, samples, seed, facts, path, progress)
    samples, facts = _find_duplicates(groups, samples, facts, lambda cosine: _near_pairs(vectors, cosine))
    labels = _labels(samples)
    members, real, cosines = partition.in_one_cell(vectors, labels, groups.size, _neighbours(groups))
    return _judged(samples, vectors, labels, members, real, cosines, seed, facts)


def embed(source: Source, samples: Samples, seed: int, path: Path, progress: Progress | None,
          ) -> tuple[np.ndarray, dict[str, Any]]:
    """Unit-norm vectors in the order of `samples.table`, and facts about them; ValueError: not finite."""
    from pipelines.grouping import caption_embedding, image_embedding, kept
    from pipelines.grouping.neighbours import check_finite
    if source.model is not None:
        recipe = image_embedding.recipe(source.model, source.batch)
        facts: dict[str, Any] = {"embedding": image_embedding.describe(source.model), "model": str(source.model)}
    else:
        caption_embedding.check(source.text)
        recipe = caption_embedding.recipe(source.text, seed)
        facts = {"embedding": caption_embedding.describe(source.text)}
    vectors = kept.embeddings(recipe, samples, source.home or kept.home_of(samples.store.path, path), progress)
    check_finite(vectors)
    return vectors, facts | {"without_embedding": int((~vectors.any(axis=1)).sum())}


def _in_cells(groups: GroupsConfig, vectors: np.ndarray, samples: Samples, seed: int, facts: dict[str, Any],
              path: Path, progress: Progress | None) -> Grouped:
    from pipelines.grouping import cell_tasks
    with building_folder(path, vectors.nbytes, ".cells") as work:
        vectors = cell_tasks.save_vectors(vectors, work)
        samples, facts = _find_duplicates(groups, samples, facts, lambda cosine: cell_tasks.pairs_in_cells(
            vectors, cosine, groups.cell, seed, work, progress))
        labels = _labels(samples)
        members, real, cosines = cell_tasks.partition_in_cells(
            vectors, labels, groups.size, _neighbours(groups), groups.cell, seed, work, progress)
        return _judged(samples, vectors, labels, members, real, cosines, seed, facts)


def _neighbours(groups: GroupsConfig) -> int:
    return max(groups.neighbours, 2 * groups.size)


def _near_pairs(vectors: np.ndarray, cosine: float) -> np.ndarray:
    from pipelines.grouping.neighbours import pairs_above
    return pairs_above(vectors, cosine)


def _find_duplicates(groups: GroupsConfig, samples: Samples, facts: dict[str, Any],
                     near_pairs: Callable[[float], np.ndarray]) -> tuple[Samples, dict[str, Any]]:
    """The samples with one image class for all that look the same, and what the manifest tells of it."""
    before = united = samples.table["image_class"].to_numpy()
    if groups.duplicate_cosine < 1:
        united = unite(before, near_pairs(groups.duplicate_cosine))
        check_cosine(united, groups.duplicate_cosine)
        place = samples.table.schema.get_field_index("image_class")
        samples = replace(samples, table=samples.table.set_column(place, "image_class", pa.array(united)))
    return samples, facts | {"duplicates": describe(before, united)}


def _labels(samples: Samples) -> np.ndarray:
    captions = samples.table["captions"].to_pylist()
    return duplicate_labels(samples.table["image_class"].to_numpy(),
                            [[caption_class(caption) for caption in several] for several in captions])


def _judged(samples: Samples, vectors: np.ndarray, labels: np.ndarray, members: np.ndarray, real: np.ndarray,
            cosines: np.ndarray, seed: int, facts: dict[str, Any]) -> Grouped:
    size = members.shape[1]
    shuffled = quality.random_groups(len(vectors), size, seed)
    shown = {"members": quality.member_cosines(vectors, labels, members, real),
             "random": quality.member_cosines(vectors, labels, shuffled, np.ones(shuffled.shape, np.bool_)).ravel(),
             "bound": quality.bounds(cosines, size)}
    found = quality.report(vectors, labels, cosines, members, real, seed)
    return Grouped(samples, members, real, facts | {"quality": found}, shown)
