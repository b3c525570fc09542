"""webdataset with the feed's transform in its workers: shards and a buffer shuffled, batches made in the workers."""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import webdataset

from benchmarks.peers.measure import WORKERS, Batch, OnePass, consume, files, main, table, tensors
from pipelines.feed.plan import FeedPlan

BUFFER = 256
"""Groups among which a worker draws."""


def row(sample: dict[str, bytes], size: int) -> dict[str, Any]:
    """A sample of a tar as a row of the grouped store."""
    return json.loads(sample["json"]) | {"images": [sample[f"{m}.jpg"] for m in range(size)]}


def start(plan: FeedPlan) -> OnePass:
    """Passes over tars."""
    folder, size = Path(plan.groups_path).parent / "tars", plan.store().size

    def batch(rows: list[dict[str, Any]]) -> Batch:
        return tensors(table(rows), plan)

    def one_pass(groups: int) -> dict[str, Any]:
        began = time.monotonic()
        tars = [str(folder / Path(file).with_suffix(".tar").name) for file in files(plan, groups)]
        dataset = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(BUFFER)
        dataset = dataset.map(lambda sample: row(sample, size)).batched(plan.groups_per_atom, collation_fn=batch)
        loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS)
        return consume(loader, plan, groups, began)

    return one_pass


if __name__ == "__main__":
    main(start)
