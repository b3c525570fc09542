"""Which data a run trains on, written down at its first launch: store, version, groups. Later launches use the same."""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import write_atomically
from pipelines.location import Place


@dataclass(frozen=True)
class DataPin:
    """The store's folder and version, and the grouped store's folder."""

    store: str
    version: int
    groups: str


def planned(run: Path, store: Place, version: int, groups: Path) -> DataPin:
    """The run's pin, or where there is none what it would be; UserError where the run has another store."""
    path = run / "data.json"
    if not path.exists():
        return DataPin(str(store), version, str(groups))
    pin = DataPin(**json.loads(path.read_text()))
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
