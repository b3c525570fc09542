"""Inputs that are wrong in one way each, and many commands run in one process (run as a script: `main`)."""
from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from ashnets.config import TextConfig
from jobs import cli, pretrain
from pipelines.config import GroupsConfig, PretrainConfig
from pipelines.grouping.build import build_groups
from pipelines.resume import save_config
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore
from pipelines.training.lease import Lease
from tests.pipelines.feed.small_stores import encode
from tests.pipelines.training.small_checkpoints import make_checkpoint

TINY = Path(__file__).parent / "tiny.yaml"


def rows(train: int, val: int) -> pa.Table:
    """A table of the store's columns with noise images of 32 pixels."""
    random = np.random.default_rng(0)
    made = []
    for i in range(train + val):
        image = encode(random.integers(0, 256, (32, 32, 3), dtype=np.uint8), "png")
        made.append({"sample_id": f"test/{i:03d}", "source": "test", "split": "train" if i < train else "val",
                     "image": image, "width": 32, "height": 32, "sha256": f"{i:064d}", "image_class": i,
                     "captions": [f"picture number {i}"], "metadata": "{}", "batch_id": "one"})
    return pa.Table.from_pylist(made, STORE_SCHEMA)


def make_stores(folder: Path) -> None:
    """`good`, and beside it `empty-folder`, `no-rows`, `no-val`, `column`, `type`, `text`, and `groups-of-3`."""
    good = ImageTextStore(folder / "good")
    good.append([rows(24, 8)], "one")
    ImageTextStore(folder / "no-val").append([rows(24, 0)], "one")
    (folder / "empty-folder").mkdir()
    write_deltalake(folder / "no-rows", rows(0, 0))
    write_deltalake(folder / "column", rows(24, 8).drop_columns("captions"))
    captions = pa.array([f"picture number {i}" for i in range(32)])
    write_deltalake(folder / "type", rows(24, 8).set_column(8, "captions", captions))
    (folder / "text").write_text("no folder")
    build_groups(GroupsConfig(size=3, method="random"), TextConfig(), good, 0, folder / "groups-of-3")


def make_run(config: PretrainConfig, storage: Path, name: str) -> Path:
    """A run at step 3 that was started with `config`; its checkpoint holds no weights."""
    run = storage / name
    with Lease(run) as lease:
        save_config(replace(config, run=replace(config.run, name=name, storage=str(storage))), run)
        make_checkpoint(run, lease.attempt, 3)
    return run


def main(file: Path) -> None:
    """Run each command of the JSON `file` (name -> words) as `jobs/pretrain.py` does; print name -> [code, stderr]."""
    results = {}
    for name, words in json.loads(file.read_text()).items():
        sys.argv = ["pretrain.py", *words]
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            try:
                cli.run(pretrain.main)
            except SystemExit as end:
                results[name] = [end.code, told.getvalue()]
            except Exception as error:
                results[name] = [1, f"Traceback: {error!r}"]
    import ray

    print(json.dumps({"results": results, "ray": ray.is_initialized()}))


def damage_one_image(groups: Path) -> str:
    """Cut an image of the first group short, in place; returns the sample's id."""
    from pipelines.store.schema import read_row_groups, row_group_sizes, write_parquet

    manifest = json.loads((groups / "groups.json").read_text())
    part = groups / manifest["files"][0]["name"]
    sizes = row_group_sizes(part)
    table = read_row_groups(part, range(len(sizes)))
    images = table["images"].to_pylist()
    images[0][1] = images[0][1][:40]
    table = table.set_column(table.schema.get_field_index("images"), "images", pa.array(images, pa.list_(pa.binary())))
    manifest["files"][0]["bytes"] = write_parquet(table, part, sizes[0])
    (groups / "groups.json").write_text(json.dumps(manifest))
    return str(table["sample_ids"][0][1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
