"""Where things lie by default: stores and groups below the data folder, runs below the runs folder."""
from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from pipelines.config import DataConfig, GroupsConfig, PretrainConfig
from pipelines.errors import UserError
from pipelines.location import Address, Place, folder_of, place_of


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def run_folder(config: PretrainConfig, root: Path) -> Path:
    """The run's folder; UserError where run.storage is an address."""
    named = config.run.storage
    return (folder_of("run.storage", named, "runs") if named else root.absolute() / "runs") / config.run.name


def store_folder(data: DataConfig, root: Path) -> Place:
    """The named store, or the built-in source's: data/<source>, with a fingerprint where its settings differ."""
    if data.store:
        return place_of(data.store)
    settings, standard = asdict(data), asdict(DataConfig(source=data.source))
    name = data.source if settings == standard else f"{data.source}-{_fingerprint(settings)}"
    return root.absolute() / "data" / name


def groups_folder(config: PretrainConfig, store: Place, version: int) -> Path:
    """The named grouped store, or one beside the store that names what it was built from; UserError where that would
    lie in object storage.
    """
    groups: GroupsConfig = config.groups
    if groups.path:
        return folder_of("groups.path", groups.path, "groups")
    if isinstance(store, Address):
        raise UserError(f"groups.path is missing: {store} is an address, and groups lie in a folder that every node "
                        "sees: groups.path=FOLDER")
    shaping, standard = asdict(groups), asdict(GroupsConfig())
    # Regrouping shapes later groups only; two younger settings count where they are set: folders keep their names.
    shaping = {name: value for name, value in shaping.items() if not name.startswith("regroup")
               and not (name in ("duplicate_cosine", "cell") and value == standard[name])}
    fingerprint = _fingerprint(shaping, asdict(config.model.text), config.run.seed)
    return store.with_name(f"{store.name}.groups") / f"v{version}-{groups.method}-G{groups.size}-{fingerprint}"
