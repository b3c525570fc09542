"""Group a store: `python jobs/group.py data.store=FOLDER [model=RUN_OR_EXPORT] groups.size=4 groups.path=FOLDER`."""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.paths import default_root
from jobs import cli
from pipelines.grouping.config import GroupConfig


def main(argv: list[str]) -> None:
    """Group as `argv` says."""
    command = cli.parse(GroupConfig, argv, defaults_file=cli.CONFIGS / "group" / "demo.yaml",
                        description="Write disjoint groups of similar samples of a store's training split, one row a "
                                    "group, with groups.html, which shows them.")
    print("\n".join(command.difference), flush=True)
    from pipelines.grouping.command import group_store

    group_store(command.config, default_root())


if __name__ == "__main__":
    cli.run(main)
