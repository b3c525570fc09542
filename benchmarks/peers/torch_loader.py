"""torch's DataLoader with the feed's transform: map-style over the Parquet, which it holds in memory whole."""
from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.measure import WORKERS, Batch, consume, main, read_all, tensors
from pipelines.feed.plan import FeedPlan


class Groups(Dataset[Batch]):
    """The groups of the store, drawn a batch at a time."""

    def __init__(self, plan: FeedPlan) -> None:
        self._plan = plan
        self._rows = read_all(plan)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these rows."""
        return tensors(self._rows.take(pa.array(indices)), self._plan)


def run(plan: FeedPlan) -> dict[str, Any]:
    """One epoch."""
    loader = DataLoader(Groups(plan), batch_size=plan.groups_per_atom, shuffle=True, num_workers=WORKERS,
                        collate_fn=lambda batch: batch)
    return consume(loader, plan, time.monotonic())


if __name__ == "__main__":
    main(run)
