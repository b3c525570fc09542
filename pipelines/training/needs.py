"""What a run needs in bytes: estimates from the model's size and the configuration (no torch or ray import)."""
from __future__ import annotations

from dataclasses import dataclass

from pipelines.config import PretrainConfig
from pipelines.feed.plan import block_groups, sample_bytes

PROCESS_BYTES = 600 * 2**20
"""What a CPU worker holds alone before its model: 602 MiB, beside 426 MiB of libraries that all workers share (of
1,028 MiB resident). Measured by `python -c "import pipelines.training.worker, psutil;
print(psutil.Process().memory_full_info())"` (uss, rss)."""


@dataclass(frozen=True)
class ModelSize:
    """Parameters of the pre-training model, and those that learn."""

    parameters: int
    trainable: int


def checkpoint_bytes(size: ModelSize) -> int:
    """At most: fp32 weights, and for what learns the optimizer's fp32 copy and AdamW's two moments."""
    return 4 * size.parameters + 12 * size.trainable


def worker_bytes(config: PretrainConfig, size: ModelSize, cpu: bool) -> float:
    """Main memory that one worker holds at least: its process and the copy of a checkpoint that is being written, on a
    CPU weights, gradients and optimizer too.

    ZeRO shares the optimizer from stage 1, gradients from 2 and weights from 3 among the workers.
    """
    stage, workers = config.scaling.zero_stage, config.scaling.most
    optimizer = 12 * size.trainable / (workers if stage >= 1 else 1)
    gradients = 4 * size.trainable / (workers if stage >= 2 else 1)
    weights = 4 * size.parameters / (workers if stage >= 3 else 1)
    held = PROCESS_BYTES + optimizer + (4 * size.trainable if stage < 3 else 0)
    return held + optimizer + gradients + weights if cpu else held


def feed_bytes(config: PretrainConfig, image_bytes: float) -> float:
    """What the feed holds at once: two windows of encoded images, and three blocks a worker as arrays."""
    groups, feed, workers = config.groups, config.feed, config.scaling.most
    window_groups = feed.window * groups.row_group
    group_bytes = groups.size * sample_bytes(feed, config.model.text.max_tokens)
    atom = config.train.groups_per_atom
    block = max(1, block_groups(group_bytes, window_groups, workers) // atom) * atom
    return 2 * window_groups * groups.size * image_bytes + 3 * workers * block * group_bytes
