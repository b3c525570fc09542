"""Look at a store: `python jobs/inspect.py data.store=FOLDER` prints what it holds and draws a page of it."""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.paths import default_root
from jobs import cli
from pipelines.store.settings import InspectConfig


def main(argv: list[str]) -> None:
    """Inspect as `argv` says."""
    command = cli.parse(InspectConfig, argv,
                        description="Show a store's versions, rows by source and split, refusals by reason, lengths of "
                                    "captions and sizes of images; write store.html and contact_sheet.png.")
    print("\n".join(command.difference), flush=True)
    from pipelines.location import folder_of  # late: these take seconds to import
    from pipelines.report.store_page import write_inspection
    from pipelines.store.inspection import inspect, told

    config = command.config
    to = folder_of("to", config.to, "pages") if config.to else None
    found = inspect(config.data.store or default_root() / "data" / "demo", config.samples, config.seed)
    beside = found.path.parent if isinstance(found.path, Path) else Path.cwd()
    folder = to or beside / f"{found.path.name}.inspection"
    write_inspection(found, folder)
    print("\n".join([*told(found), f"to look at: {folder / 'store.html'} and contact_sheet.png beside it"]))


if __name__ == "__main__":
    cli.run(main)
