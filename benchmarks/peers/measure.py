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
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.peers import data
from pipelines.feed.plan import FeedPlan
from pipelines.feed.transform import ARRAYS, array_column, transform_block
from pipelines.grouping.materialise import GROUP_SCHEMA

WORKERS = 2
"""Processes of every loader; the feed's pipeline has as many CPUs."""
WINDOW_FILES = 8
"""Files that the feed reads before its first batch, a window; the short pass has as many where there are twice as many:
what has to be there before the first batch is then the same in both passes."""

PAIRS = 2
"""Short and long passes in turn: a long one takes ten seconds, and one alone differs from the next by a tenth."""

Batch = dict[str, torch.Tensor]
OnePass = Callable[[int], dict[str, Any]]
"""Consumes the first so many groups of the store; returns what `consume` returns."""


def main(start: Callable[[FeedPlan], OnePass]) -> None:
    """Run an arm on the plan that the command line asks for and print its result.

    The rate is that between short and long passes, (images more) / (seconds more), so that neither starts nor what is
    loaded ahead of the first batch count.
    """
    torch.set_num_threads(1)
    folder, groups_per_batch = Path(sys.argv[1]), int(sys.argv[2])
    plan = data.plan(folder, groups_per_batch)
    groups = plan.store().groups
    fewer = min(WINDOW_FILES * data.FILE_GROUPS, groups // 2)
    one_pass = start(plan)
    one_pass(groups)  # processes start, import, and get their memory
    pairs = [(one_pass(fewer), one_pass(groups)) for _ in range(PAIRS)]
    short_s, whole_s = fmean(short["seconds"] for short, _ in pairs), fmean(whole["seconds"] for _, whole in pairs)
    print(json.dumps({"images_per_s": round((groups - fewer) * plan.store().size / (whole_s - short_s), 1),
                      "short_pass_s": round(short_s, 3), "long_pass_s": round(whole_s, 3),
                      "first_batch_s": round(fmean(whole["first_batch_s"] for _, whole in pairs), 3),
                      "checksum": pairs[-1][1]["checksum"]}), flush=True)


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


def files(plan: FeedPlan, groups: int) -> list[str]:
    """The Parquet files of the first `groups` groups."""
    return [str(path) for path in sorted(Path(plan.groups_path).glob("*.parquet"))[:-(-groups // data.FILE_GROUPS)]]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows that a peer has read one by one, as a table."""
    return pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)


def consume(batches: Iterable[Batch], plan: FeedPlan, groups: int, began: float) -> dict[str, Any]:
    """Read every byte of every batch, as a copy to a device would, and time it.

    `began` is time.monotonic() when the loader was set up. The checksum does not depend on the order of the images, so
    every arm with the feed's transform must have the same over the whole store.
    """
    images = checksum = 0
    first_batch_s = None
    for batch in batches:
        if first_batch_s is None:
            first_batch_s = time.monotonic() - began
        pixels = batch["pixels"]
        images += pixels.numel() // (3 * plan.feed.image_size**2)
        checksum += sum(int(batch[name].sum()) for name in ("mlm_input_ids", "mlm_labels"))
        checksum += int(pixels.view(torch.int64).sum())
    seconds = time.monotonic() - began
    if images != groups * plan.store().size:
        raise RuntimeError(f"{images} images came, {groups * plan.store().size} were expected")
    return {"seconds": seconds, "first_batch_s": first_batch_s, "checksum": checksum % 2**64}
