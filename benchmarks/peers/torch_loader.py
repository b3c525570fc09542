"""torch's DataLoader with the feed's transform: map-style over the Parquet, which it holds in memory whole."""
from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.measure import WORKERS, Batch, OnePass, consume, files, main, tensors
from pipelines.feed.plan import FeedPlan


class Groups(Dataset[Batch]):
    """The first groups of the store, drawn a batch at a time."""

    def __init__(self, plan: FeedPlan, groups: int) -> None:
        self._plan = plan
        # In one piece: Arrow's take copies every piece of a table in several, on every call.
        self._rows = pq.read_table(files(plan, groups)).combine_chunks()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these rows."""
        return tensors(self._rows.take(pa.array(indices)), self._plan)


def start(plan: FeedPlan) -> OnePass:
    """Passes over data in memory."""
    def one_pass(groups: int) -> dict[str, Any]:
        data = Groups(plan, groups)
        began = time.monotonic()
        loader = DataLoader(data, batch_size=plan.groups_per_atom, shuffle=True, num_workers=WORKERS,
                            collate_fn=lambda batch: batch)
        return consume(loader, plan, groups, began)

    return one_pass


if __name__ == "__main__":
    main(start)
