"""A driver for the tests of killed and racing ingests: joins the cluster of RAY_ADDRESS, waits for a file, ingests."""
from __future__ import annotations

import sys
import time
from pathlib import Path

import ray

from pipelines.config import DataConfig
from pipelines.store.ingest import ingest_demo


def main(store: str, scenes: str, go: str) -> None:
    """Ingest so many scenes into `store` once the file `go` is there."""
    ray.init(log_to_driver=False)
    print("ready", flush=True)
    while not Path(go).exists():
        time.sleep(0.001)
    start = time.monotonic()
    report = ingest_demo(DataConfig(source="scenes", scenes=int(scenes), scenes_val=8), Path(store))
    print(report.added, time.monotonic() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
