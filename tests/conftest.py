"""Fixtures that every test folder shares: one local Ray, one store and one trained run for the whole session."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Finished, Jobs

# Ray reads these when it is imported: no token file is written, and Parquet is read by the light-weight reader.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DATA_USE_DATASOURCE_V2"] = "0"

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def ray_local() -> Iterator[ModuleType]:
    """The `ray` module, connected to a local Ray of 2 CPUs without a dashboard; shut down at the end."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}})
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """A small real store, and places to run jobs in."""
    from tests.e2e.conftest import make_jobs

    return make_jobs(tmp_path_factory.mktemp("e2e"))


@pytest.fixture(scope="session")
def tiny(jobs: Jobs) -> Finished:
    """An uninterrupted run: one serves many tests."""
    from tests.e2e.conftest import train_tiny

    return train_tiny(jobs)
