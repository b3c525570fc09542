"""The grouped store: Parquet in which one row is one group, so that neighbours survive every shuffle and split.

How its images get into the order of the groups stands in shuffle.py.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from pipelines.disk import demand_room, full_disk_told, is_full
from pipelines.errors import UserError
from pipelines.files import sync, write_atomically
from pipelines.grouping.samples import Samples

MANIFEST = "groups.json"
FORMAT = 1
BUILDING = "building the groups (groups.path)"

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""

GROUP_SCHEMA = pa.schema([
    ("group_id", pa.int64()),
    ("sample_ids", pa.list_(pa.string())),
    ("images", pa.list_(pa.binary())),
    ("captions", pa.list_(pa.list_(pa.string()))),
    ("image_classes", pa.list_(pa.int64())),
    ("real", pa.list_(pa.bool_())),
])
"""A row of the grouped store: G entries in every list; `real` is False for a padding copy.

Samples of one value in `image_classes` count as one picture: their image class in the store, or, where
`groups.duplicate_cosine` united several, the smallest of those. ITC, ITM and STUA take none of them for the others'
negatives.
"""


@dataclass(frozen=True)
class GroupedStore:
    """A finished grouped store."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, size: int | None = None) -> GroupedStore:
        """Open and check the folder: manifest, G (where `size` names it), presence and size of every file.

        Raises FileNotFoundError or ValueError, naming what is wrong.
        """
        path = Path(path).expanduser().absolute()
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: there is no grouped store here; build one, or set groups.path")
        manifest = _read_manifest(path)
        if size is not None and manifest["size"] != size:
            raise ValueError(f"{path}: its groups have {manifest['size']} samples, groups.size={size} was asked for")
        for file in manifest["files"]:
            part = path / file["name"]
            if not part.is_file():
                raise FileNotFoundError(f"{part} is missing, which {MANIFEST} lists: restore it, or remove the "
                                        "folder and build the groups again")
            if part.stat().st_size != file["bytes"]:
                raise ValueError(f"{part} has {part.stat().st_size} bytes, {MANIFEST} says {file['bytes']}: restore "
                                 "it, or remove the folder and build the groups again")
        return cls(path, manifest)

    @property
    def size(self) -> int:
        """G: samples of a group."""
        return int(self.manifest["size"])

    @property
    def groups(self) -> int:
        """Groups in all files."""
        return int(self.manifest["groups"])

    @property
    def row_groups(self) -> list[tuple[str, int, int]]:
        """Every Parquet row group in order: absolute file, index in the file, groups in it."""
        return [(str(self.path / file["name"]), index, rows)
                for file in self.manifest["files"] for index, rows in enumerate(file["row_groups"])]


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """SHA-256 of what shapes the groups."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def existing(path: Path, configuration: Mapping[str, Any]) -> GroupedStore | None:
    """The grouped store at `path` if it was built with this configuration; None where `path` does not exist.

    A caller without a model takes groups that a model compared, since his text settings say nothing about those.
    ValueError, naming what differs, where something else is there.
    """
    if not path.exists():
        return None
    store = GroupedStore.open(path)
    built, wanted = store.manifest["configuration"], dict(configuration)
    if "model" in built and "text" in wanted:
        wanted["model"] = built["model"]
        del wanted["text"]
    if configuration_hash(built) != configuration_hash(wanted):
        keys = [*wanted, *sorted(built.keys() - wanted.keys())]
        different = ", ".join(f"{key}={built.get(key)!r} (now {wanted.get(key)!r})" for key in keys
                              if built.get(key) != wanted.get(key))
        raise ValueError(f"{path} holds groups of another configuration: {different}; "
                         "name another groups.path, or remove the folder")
    return store


def materialise(samples: Samples, groups: Int64[np.ndarray, "n G"], real: Bool[np.ndarray, "n G"], path: Path,
                row_group: int, configuration: Mapping[str, Any], facts: Mapping[str, Any],
                finish: Callable[[GroupedStore], None] | None = None, progress: Progress | None = None) -> GroupedStore:
    """Write the groups (row numbers of `samples.table`), in their order, to the folder `path`, whole or not at all.

    A row group holds `row_group` groups; files end at about shuffle.FILE_BYTES. The manifest takes `facts` beside the
    configuration. `finish` may add to the folder before it gets its name. Raises ValueError where the store changed
    since `samples` was read, or where `path` exists, and UserError where the disk is full.
    """
    from pipelines.grouping import shuffle  # late: who only reads grouped stores needs no ray

    with building_folder(path, building_bytes(samples)) as building:
        files = shuffle.write_parts(samples, groups, real, building, row_group, progress)
        manifest = {"format": FORMAT, "groups": len(groups), "size": groups.shape[1], **facts, "files": files,
                    "configuration": dict(configuration), "configuration_hash": configuration_hash(configuration)}
        write_atomically(building / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        if finish is not None:
            finish(GroupedStore.open(building))
        if path.exists():
            raise ValueError(f"{path} came into being while its groups were built: start again")
        building.rename(path)
        sync(path.parent)
    return GroupedStore.open(path)


def check_room(path: Path, samples: Samples) -> None:
    """UserError where the groups of `samples` cannot be built at `path`: no folder can be made, or it has no room."""
    needed = building_bytes(samples)
    with building_folder(path, needed):
        demand_room(path, BUILDING, needed)


def building_bytes(samples: Samples) -> int:
    """About what lies on the disk at once while the groups are built: their images, and as many to copy them from."""
    return 2 * samples.stored_bytes


@contextmanager
def building_folder(path: Path, needed: int | None = None, kind: str = "") -> Iterator[Path]:
    """A folder beside `path` to build in, removed after the block, or by the next build where this one is killed.

    Raises UserError where it cannot be made, and where the disk becomes full in the block, which writes `needed` bytes.
    """
    with full_disk_told(path, BUILDING, needed):
        folder = path.with_name(f".{path.name}{kind}.{socket.gethostname()}.{os.getpid()}.building")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path, kind)
            folder.mkdir()
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(f"groups.path={path} cannot be made ({error.strerror}): name a writable folder") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {MANIFEST}, so it is no grouped store: name another groups.path")
    try:
        manifest = json.loads(file.read_text())
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: remove the folder and build the groups again") from error
    if found != FORMAT:
        raise ValueError(f"{file} has format {found}, this version reads {FORMAT}: build the groups again")
    return manifest


def _remove_abandoned(path: Path, kind: str) -> None:
    """Remove what builds of this folder left behind that were killed on this host."""
    for folder in path.parent.glob(f".{path.name}{kind}.{socket.gethostname()}.*.building"):
        pid = int(folder.name.split(".")[-2])
        if pid == os.getpid() or not _alive(pid):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
