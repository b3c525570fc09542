"""Which data a run trains on, written down at its first launch: store, version, groups. Later launches use the same."""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import write_atomically
from pipelines.location import Place
from pipelines.store.table import ImageTextStore


@dataclass(frozen=True)
class DataPin:
    """The store's folder and version, and the grouped store's folder."""

    store: str
    version: int
    groups: str


def read_pin(run: Path) -> DataPin:
    """What data.json of a run or a sweep says."""
    return DataPin(**json.loads((run / "data.json").read_text()))


def first_version(config: PretrainConfig, store: ImageTextStore) -> int:
    """The version that a run's first launch takes: the one that is named, else the newest; UserError where the store,
    which exists, has not come to that one."""
    newest, named = store.version(), config.train.data_version
    if named > newest:
        raise UserError(f"train.data_version={named}: {store.path} has versions up to {newest}: name one of them, or "
                        "leave it out for the newest")
    return named or newest


def planned(run: Path, store: Place, version: int, groups: Path) -> DataPin:
    """The run's pin, or where there is none what it would be; UserError where the run has another store."""
    if not (run / "data.json").exists():
        return DataPin(str(store), version, str(groups))
    pin = read_pin(run)
    if pin.store != str(store):
        raise UserError(f"run {run.name} trains on the store {pin.store}, not on {store}: use that data.store, or "
                        "another run.name")
    return pin


def pinned(run: Path, store: Place, version: int, groups: Path) -> DataPin:
    """The run's pin, written down where there is none; errors as for `planned`."""
    pin = planned(run, store, version, groups)
    if not (run / "data.json").exists():
        write_atomically(run / "data.json", json.dumps(asdict(pin), indent=1).encode())
    return pin
