"""What a run was trained on, for its model card: sources, rows and licences, as the store tells them."""
from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipelines.location import place_of
from pipelines.sources.emoji import LICENCE
from pipelines.store.table import ImageTextStore
from pipelines.training.data_pin import read_pin

BUILT_IN = {
    "emoji": "Twemoji pictures on white, captioned by their Unicode CLDR names",
    "scenes": "generated scenes of one to three Twemoji pictures, captioned from templates",
}


@dataclass(frozen=True)
class SourceFacts:
    """One source of a store's version."""

    name: str
    rows_by_split: dict[str, int]
    licences: tuple[str, ...]
    """What the metadata of its rows states; the built-in sources' own where it states nothing."""

    @property
    def rows(self) -> str:
        """`1,391 train, 241 unseen`."""
        return ", ".join(f"{count:,} {split}" for split, count in self.rows_by_split.items())


@dataclass(frozen=True)
class DataFacts:
    """The store of a run, without its place, and its sources; none where the store is not there any more."""

    store: str
    version: int
    sources: tuple[SourceFacts, ...]

    @property
    def built_in(self) -> bool:
        """Whether all of it came inside packages: drawings with names and templates."""
        return bool(self.sources) and all(source.name in BUILT_IN for source in self.sources)

    @property
    def some_built_in(self) -> bool:
        """Whether any of it did."""
        return any(source.name in BUILT_IN for source in self.sources)


def data_facts(run: Path) -> DataFacts | None:
    """What data.json pins; None for a run that has none."""
    if not (run / "data.json").exists():
        return None
    pin = read_pin(run)
    rows: Counter[tuple[str, str]] = Counter()
    licences: dict[str, set[str]] = {}
    if place_of(pin.store).exists() and ImageTextStore(pin.store).exists():
        for batch in ImageTextStore(pin.store).iter_batches(["source", "split", "metadata"], version=pin.version,
                                                            rows=8192):
            columns = [batch[name].to_pylist() for name in ("source", "split", "metadata")]
            for source, split, metadata in zip(*columns, strict=True):
                rows[source, split] += 1
                licences.setdefault(source, set()).update(_licence(metadata))
    sources = tuple(SourceFacts(name, {split: rows[name, split] for split in sorted({s for n, s in rows if n == name})},
                                tuple(sorted(found)) or ((LICENCE,) if name in BUILT_IN else ()))
                    for name, found in sorted(licences.items()))
    return DataFacts(place_of(pin.store).name, pin.version, sources)


def _licence(metadata: str | None) -> set[str]:
    if not metadata or '"licence"' not in metadata:
        return set()
    try:
        licence = json.loads(metadata)["licence"]
    except (ValueError, KeyError, TypeError):
        return set()
    return {" ".join(licence.split())} if isinstance(licence, str) else set()
