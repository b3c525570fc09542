"""Pre-train an ASH-Net: `python jobs/pretrain.py [--config FILE] key.sub=value ...`; with no argument, the demo."""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.paths import default_root
from jobs import cli
from pipelines.config import PretrainConfig


def main(argv: list[str]) -> None:
    """Pre-train as `argv` says."""
    command = cli.parse(PretrainConfig, argv, defaults_file=cli.CONFIGS / "demo.yaml",
                        description="Pre-train an ASH-Net on image-text pairs. With no argument: the demo, on the "
                                    "emoji and scenes that come inside packages.")
    print("\n".join(command.difference), flush=True)
    from pipelines.pretraining import pretrain  # late: torch and ray take seconds to import

    pretrain(command.config, default_root())


if __name__ == "__main__":
    cli.run(main)
