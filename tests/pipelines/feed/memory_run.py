"""Object-store use under a slow consumer: `python -m tests.pipelines.feed.memory_run FOLDER GROUPS BLOCKS`.

Prints the bytes in use after each of the first BLOCKS blocks of a stream over GROUPS groups, as a JSON list.
"""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from pipelines.config import FeedConfig
from pipelines.feed.plan import BLOCK_GROUPS, TASK_BLOCKS, FeedPlan
from pipelines.feed.stream import build_stream, whole_blocks
from tests.pipelines.feed.small_stores import make_groups, write_groups, write_tokenizer

OBJECT_STORE = 100 * 2**20
SIDE = 68
"""Pixels of a group of 3: 41 KiB; 128 groups a block, 4 blocks a task, as many groups as a window: 5.1 MiB a block."""


def main(folder: Path, groups: int, blocks: int) -> None:
    """Consume slowly and watch."""
    rows = make_groups(50, 3, 24)
    write_groups(folder / "store", [rows[i % len(rows)] | {"group_id": i} for i in range(groups)], row_group=16)
    write_tokenizer(folder / "tokenizer.json")
    plan = FeedPlan(str(folder / "store"), 7, FeedConfig(window=32, image_size=SIDE, captions=1),
                    str(folder / "tokenizer.json"), 8, 0.3, False, groups_per_atom=8, atoms_per_step=1)
    assert (plan.block_rows(1), plan.task_blocks(1)) == (BLOCK_GROUPS, TASK_BLOCKS), "as large stores have them"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             object_store_memory=OBJECT_STORE)
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    [shard] = build_stream(plan, 0, groups // plan.step_groups, 1).streaming_split(1, equal=False)
    stream, used = whole_blocks(shard), []
    for _ in range(blocks):
        next(stream)
        time.sleep(0.2)
        used.append(get_memory_info_reply(state).store_stats.object_store_bytes_used)
    ray.shutdown()
    print(json.dumps(used))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
