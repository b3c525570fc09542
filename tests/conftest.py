"""Fixtures that every test folder shares: a local Ray, an S3 server, a store and a trained run a session."""
from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests import s3_server

if TYPE_CHECKING:
    from tests.e2e.conftest import Finished, Jobs

# Ray reads these when it is imported: no token file is written, and Parquet is read by the light-weight reader.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DATA_USE_DATASOURCE_V2"] = "0"
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ |= s3_server.ENVIRONMENT

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
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bucket on a real S3 server; see `bucket`."""
    with s3_server.serving(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def bucket(s3: str) -> str:
    """An empty place in the bucket, a test's own."""
    return f"{s3}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the processes of this call of pytest."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def jobs(shared: Path) -> Jobs:
    """A small real store, and places to run jobs in: the first process that asks makes them, the others wait."""
    from tests.e2e.conftest import make_jobs

    with FileLock(shared / "jobs.lock"):
        return make_jobs(shared / "jobs")


@pytest.fixture(scope="session")
def tiny(jobs: Jobs, shared: Path) -> Finished:
    """An uninterrupted run: one serves the tests of all processes."""
    from tests.e2e.conftest import train_tiny

    with FileLock(shared / "tiny.lock"):
        return train_tiny(jobs)
