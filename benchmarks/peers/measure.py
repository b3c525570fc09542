"""What all arms of the feed's benchmark share: the command line, our transform on rows, the clock, the result.

An arm is a process `python -m benchmarks.peers.NAME FOLDER GROUPS_PER_BATCH`; the last line that it prints is its
result as JSON.
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.peers import data
from pipelines.feed.plan import FeedPlan
from pipelines.feed.transform import ARRAYS, array_column, transform_block
from pipelines.grouping.materialise import GROUP_SCHEMA

WORKERS = 2
"""Processes of every loader; the feed's pipeline has as many CPUs."""
WARM_SHARE = 1 / 8
"""Share of the images behind which the clock starts: by then what was loaded ahead is used up."""

Batch = dict[str, torch.Tensor]


def main(run: Callable[[FeedPlan], dict[str, Any]]) -> None:
    """Run an arm on the plan that the command line asks for and print its result."""
    torch.set_num_threads(1)
    folder, groups_per_batch = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps(run(data.plan(folder, groups_per_batch))), flush=True)


def arrays(rows: pa.Table, plan: FeedPlan) -> dict[str, np.ndarray]:
    """The feed's own transform on rows of the grouped store, as arrays [groups, ...] of epoch 0."""
    zeros = pa.array(np.zeros(len(rows), dtype=np.int64))
    block = transform_block(rows.append_column("position", zeros).append_column("epoch", zeros), plan)
    columns = {name: array_column(block, name) for name in ARRAYS}
    side = plan.feed.image_size
    return columns | {"pixels": columns["pixels"].reshape(len(rows), -1, 3, side, side)}


def tensors(rows: pa.Table, plan: FeedPlan) -> Batch:
    """The same as tensors."""
    return {name: torch.from_numpy(array) for name, array in arrays(rows, plan).items()}


def read_all(plan: FeedPlan) -> pa.Table:
    """All rows of the grouped store."""
    return pq.read_table(sorted(Path(plan.groups_path).glob("*.parquet")))


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows that a peer has read one by one, as a table."""
    return pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)


def consume(batches: Iterable[Batch], plan: FeedPlan, began: float) -> dict[str, Any]:
    """Read every byte of every batch, as a copy to a device would, and time it.

    `began` is time.monotonic() when the loader was asked for its first batch. The checksum does not depend on the
    order of the images, so every arm with the feed's transform must have the same.
    """
    total = plan.store().groups * plan.store().size
    images = checksum = 0
    first = start = time.monotonic()
    counted_from = 0
    for number, batch in enumerate(batches):
        if number == 0:
            first = time.monotonic()
        pixels = batch["pixels"]
        images += pixels.numel() // (3 * plan.feed.image_size**2)
        checksum += sum(int(batch[name].sum()) for name in ("mlm_input_ids", "mlm_labels"))
        checksum += int(pixels.view(torch.int64).sum())
        if not counted_from and images >= total * WARM_SHARE:
            start, counted_from = time.monotonic(), images
    seconds = time.monotonic() - start
    if images != total:
        raise RuntimeError(f"{images} images came, {total} were expected")
    return {"images_per_s": round((images - counted_from) / seconds, 1), "first_batch_s": round(first - began, 3),
            "images": images, "checksum": checksum % 2**64}


