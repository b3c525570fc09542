"""Whether the groups that the trials of a sweep train on can be had from the store."""
from __future__ import annotations

from pathlib import Path

from pipelines.finding import Finding
from pipelines.grouping.build import SPLIT, configure
from pipelines.grouping.materialise import existing
from pipelines.location import Place
from pipelines.places import groups_folder
from pipelines.store.table import ImageTextStore
from pipelines.training import preflight
from pipelines.training.data_pin import first_version, planned
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.space import Space


def possible(config: TuneConfig, space: Space, sweep: Path, path: Place) -> Finding:
    """Groups of every size that a point may have, from the store at `path`, which exists, in the sweep's version."""
    store = ImageTextStore(path)

    def check() -> None:
        version = planned(sweep, path, first_version(config, store), sweep).version
        folder = groups_folder(config, path, version)
        if config.groups.path:
            existing(folder, configure(config.groups, config.model.text, store, version, config.run.seed))
        from pipelines.grouping.partition import check_count  # late: numba takes a second to import
        sizes = space.domains.get("groups.size")
        check_count(store.count(SPLIT, version), max(sizes.values) if sizes else config.groups.size)
    return preflight.attempt("groups", check, "they are there, or can be built")
