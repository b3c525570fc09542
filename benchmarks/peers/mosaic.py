"""mosaicml-streaming with the feed's transform, in torch's DataLoader."""
from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import streaming
from torch.utils.data import DataLoader

from benchmarks.peers.measure import WORKERS, Batch, OnePass, consume, files, main, table, tensors
from pipelines.feed.plan import FeedPlan


def write(plan: FeedPlan, folder: Path) -> None:
    """The groups in Mosaic's format, whole or not at all; nothing is done where they are there."""
    if folder.exists():
        return
    building = folder.with_name(".mds.building")
    shutil.rmtree(building, ignore_errors=True)
    size = plan.store().size
    columns = {str(m): "bytes" for m in range(size)} | {"json": "str"}
    with streaming.MDSWriter(out=str(building), columns=columns) as writer:
        for row in pq.read_table(files(plan, plan.store().groups)).to_pylist():
            images = row.pop("images")
            writer.write({str(m): images[m] for m in range(size)} | {"json": json.dumps(row)})
    building.rename(folder)


def start(plan: FeedPlan) -> OnePass:
    """Passes over its own files."""
    folder, size = Path(plan.groups_path).parent / "mds", plan.store().size
    write(plan, folder)
    streaming.base.util.clean_stale_shared_memory()  # of a benchmark that was killed

    def batch(samples: list[dict[str, Any]]) -> Batch:
        rows = [json.loads(s["json"]) | {"images": [s[str(m)] for m in range(size)]} for s in samples]
        return tensors(table(rows), plan)

    def one_pass(groups: int) -> dict[str, Any]:
        began = time.monotonic()
        dataset = streaming.StreamingDataset(local=str(folder), batch_size=plan.groups_per_atom, shuffle=True,
                                             epoch_size=groups)
        loader = DataLoader(dataset, batch_size=plan.groups_per_atom, num_workers=WORKERS, collate_fn=batch)
        return consume(loader, plan, groups, began)

    return one_pass


if __name__ == "__main__":
    main(start)
