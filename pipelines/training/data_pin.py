"""Which data a run trains on, written down at its first launch: store, version, groups. Later launches use the same."""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import write_atomically


@dataclass(frozen=True)
class DataPin:
    """The store's folder and version, and the grouped store's folder."""

    store: str
    version: int
    groups: str


def pinned(run: Path, store: Path, version: int, groups: Path) -> DataPin:
    """The run's pin, made from the arguments where there is none; UserError where the run has another store."""
    path = run / "data.json"
    if not path.exists():
        pin = DataPin(str(store), version, str(groups))
        write_atomically(path, json.dumps(asdict(pin), indent=1).encode())
        return pin
    pin = DataPin(**json.loads(path.read_text()))
    if pin.store != str(store):
        raise UserError(f"run {run.name} trains on the store {pin.store}, not on {store}: use that data.store, or "
                        "another run.name")
    return pin
