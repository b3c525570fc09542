"""Export a trained model in Hugging Face form: `python jobs/export.py model=RUN_OR_EXPORT to=FOLDER`."""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.paths import default_root
from jobs import cli
from pipelines.export import ExportConfig


def main(argv: list[str]) -> None:
    """Export as `argv` says."""
    command = cli.parse(ExportConfig, argv,
                        description="Export a trained model: a folder with safetensors, configuration, processor, "
                                    "tokenizer and model card that Hugging Face's Auto classes load.")
    print("\n".join(command.difference), flush=True)
    from pipelines.export import export

    export(command.config, default_root())


if __name__ == "__main__":
    cli.run(main)
