"""Fill a store from a data set: `python jobs/ingest.py --config jobs/configs/ingest/FORMAT.yaml key=value ...`."""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.connection import connect
from jobs import cli
from pipelines.sources.config import IngestConfig


def main(argv: list[str]) -> None:
    """Ingest as `argv` says."""
    command = cli.parse(IngestConfig, argv,
                        description="Read a data set into an image-text store, or a task data set (VQA v2, NLVR2, "
                                    "SNLI-VE) into a task table. jobs/configs/ingest/ has a commented file a format.")
    print("\n".join(command.difference), flush=True)
    from pipelines.report.stages import StageProgress
    from pipelines.sources.importing import check, import_data, told

    check(command.config)
    connect()
    print("\n".join(told(import_data(command.config, StageProgress()))), flush=True)


if __name__ == "__main__":
    cli.run(main)
