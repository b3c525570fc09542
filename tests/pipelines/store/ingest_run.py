"""A driver for the tests of killed and racing ingests: joins the cluster of RAY_ADDRESS, waits for a file, ingests.

`hook` makes a moment last or the last one: `wait before append`, `die before _commit`, `die after append`, ...
"""
from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray

from pipelines.config import DataConfig
from pipelines.store import ingest as stage
from pipelines.store.table import ImageTextStore

OWNERS: dict[str, Any] = {"drop_duplicates": stage, "_commit": ImageTextStore, "append": ImageTextStore}
WAIT_S = 2.0


def install(hook: str) -> None:
    """Let the named call wait or kill this process, before or after it."""
    what, when, name = hook.split()
    call = getattr(OWNERS[name], name)

    def act() -> None:
        if what == "wait":
            time.sleep(WAIT_S)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def hooked(*arguments: Any, **keywords: Any) -> Any:
        if when == "before":
            act()
        result = call(*arguments, **keywords)
        if when == "after":
            act()
        return result
    setattr(OWNERS[name], name, hooked)


def main(store: str, scenes: str, go: str, hook: str) -> None:
    """Ingest so many scenes into `store` once the file `go` is there."""
    ray.init(log_to_driver=False)
    if hook:
        install(hook)
    print("ready", flush=True)
    while not Path(go).exists():
        time.sleep(0.001)
    start = time.monotonic()
    report = stage.ingest_demo(DataConfig(source="scenes", scenes=int(scenes), scenes_val=8), store)
    print(report.added, time.monotonic() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
