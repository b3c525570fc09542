"""What `jobs/group.py` does: check everything that can be wrong, then build the groups and say what they are."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ashnets.config import ModelConfig
from cluster.connection import connect
from pipelines.config import PretrainConfig, RunConfig
from pipelines.errors import UserError
from pipelines.grouping import build
from pipelines.grouping.config import GroupConfig
from pipelines.grouping.materialise import GroupedStore, building_folder, existing
from pipelines.places import groups_folder
from pipelines.report.stages import StageProgress
from pipelines.store.table import ImageTextStore


@dataclass(frozen=True)
class Wanted:
    """What is to be grouped, by what, and where to."""

    store: ImageTextStore
    version: int
    model: Path | None
    path: Path
    found: GroupedStore | None
    """The groups, where they are there already."""


def group_store(config: GroupConfig, root: Path) -> GroupedStore:
    """Build the groups that `config` asks for, below `root` unless it names places, and print what they are."""
    wanted = check(config, root)
    if wanted.found is not None:
        print(f"the groups are there already: {wanted.path}")
        print(summary(wanted.found))
        return wanted.found
    connect()
    built = build.build_groups(config.groups, config.text, wanted.store, config.seed, wanted.path, StageProgress(),
                               wanted.version, wanted.model, config.batch)
    print(summary(built))
    return built


def check(config: GroupConfig, root: Path) -> Wanted:
    """UserError, ValueError or FileNotFoundError where something will not do, before Ray starts."""
    store = ImageTextStore(config.data.store or root / "data" / "demo")
    if not store.exists():
        raise UserError(f"data.store={config.data.store}: {store.path} holds no image-text store: name one that does")
    version, model = store.version(), None
    count = store.count(build.SPLIT, version)
    if count < config.groups.size:
        raise UserError(f"data.store={store.path}: {count} training samples cannot fill one group of "
                        f"groups.size={config.groups.size}: ingest more samples or make the groups smaller")
    if config.model:
        from pipelines.embedding.embed import export_with_embeddings
        model = export_with_embeddings(config.model, root)
    elif config.groups.method == "similar":
        _check_text(config)
    path = place(config, store, version, model)
    if path.exists() and not path.is_dir():
        raise UserError(f"groups.path={path} is a file: name a folder that does not exist yet")
    found = existing(path, build.configure(config.groups, config.text, store, version, config.seed, model))
    if found is None:
        with building_folder(path):  # that it can be made
            pass
    return Wanted(store, version, model, path, found)


def _check_text(config: GroupConfig) -> None:
    from pipelines.grouping.caption_embedding import check as check_text
    try:
        check_text(config.text)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error).replace("model.text.", "text.")) from error  # as the keys are named here


def place(config: GroupConfig, store: ImageTextStore, version: int, model: Path | None) -> Path:
    """The named folder, or one beside the store: where pre-training looks for it, and with a model named by it."""
    like = PretrainConfig(run=RunConfig(seed=config.seed), groups=config.groups, model=ModelConfig(text=config.text))
    path = groups_folder(like, store.path, version)
    if model is None or config.groups.path:
        return path
    from pipelines.grouping.image_embedding import weights_hash
    return path.with_name(f"{path.name}-by-{weights_hash(model)[:8]}")


def summary(store: GroupedStore) -> str:
    """The groups in a few lines."""
    told = store.manifest
    lines = [f"groups: {store.groups:,} of {store.size} samples, {told['samples']:,} samples of data version "
             f"{told['data_version']}, {told['padding']} copies that fill up", f"compared by: {told['embedding']}"]
    if told.get("without_embedding"):
        lines.append(f"nothing to compare by (image does not decode, or no caption): {told['without_embedding']:,}")
    if "duplicates" in told:
        several = told["duplicates"]
        lines.append(f"pictures that several samples show: {several['classes']:,} ({several['samples']:,} samples, at "
                     f"most {several['largest']} of one); united by groups.duplicate_cosine: {several['by_cosine']:,}")
    if "quality" in told:
        found = told["quality"]
        lines.append(f"mean cosine in a group {found['in_group']:.3f}, in random groups {found['random']:.3f}, of the "
                     f"nearest (no groups reach it) {found['bound']:.3f}; pairs of duplicates in a group: "
                     f"{found['clashes']}")
    page = store.path / "groups.html"
    lines.append(f"they lie in {store.path}" + (f"; to look at them: {page}" if page.exists() else ""))
    return "\n".join(lines)
