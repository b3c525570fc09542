"""Embed a store with a trained model: `python jobs/embed.py model=RUN_OR_EXPORT data.store=FOLDER to=FOLDER`."""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.connection import connect
from cluster.paths import default_root
from jobs import cli
from pipelines.embedding.settings import EmbedConfig


def main(argv: list[str]) -> None:
    """Embed as `argv` says."""
    command = cli.parse(EmbedConfig, argv,
                        description="Write the embeddings of a store's images and captions to Parquet: columns "
                                    "sample_id, image_embedding, caption_embeddings, all of unit norm.")
    print("\n".join(command.difference), flush=True)
    from pipelines.embedding.embed import check, embed
    from pipelines.report.stages import StageProgress

    export, store = check(command.config, default_root())
    connect()
    manifest = embed(command.config, export, store, StageProgress())
    print(f"embedded {manifest['rows']} images and {manifest['captions']} captions, left out "
          f"{manifest['left_out'] or 'none'}: {command.config.to}")


if __name__ == "__main__":
    cli.run(main)
