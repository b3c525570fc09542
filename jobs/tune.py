"""Search hyperparameters: `python jobs/tune.py [--config FILE] key.sub=value ...`; with no argument, the demo sweep."""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.paths import default_root
from jobs import cli
from pipelines.tuning.config import TuneConfig


def main(argv: list[str]) -> None:
    """Search as `argv` says."""
    command = cli.parse(TuneConfig, argv, defaults_file=cli.CONFIGS / "tune" / "demo.yaml",
                        description="Search hyperparameters with Ray Tune. Every trial is a pre-training run; all keys "
                                    "of jobs/pretrain.py hold for every trial, and run.name is the sweep's. The same "
                                    "command continues a sweep.")
    print("\n".join(command.difference), flush=True)
    from pipelines.tuning.sweep import tune  # late: torch and ray take seconds to import

    tune(command.config, default_root())


if __name__ == "__main__":
    cli.run(main)
