"""The learning rate as a pure function of the step, so that nothing of it needs a checkpoint."""
from __future__ import annotations

import math

from pipelines.config import TrainConfig


def learning_rate(train: TrainConfig, step: int, schedule_steps: int) -> float:
    """Learning rate of optimizer step `step` (counted from 0): linear warm-up, then cosine or steps."""
    warmup = max(1, round(train.warmup_share * schedule_steps))
    if train.warmup_share > 0 and step < warmup:
        return train.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, schedule_steps - warmup)
    if train.schedule == "step":
        passed = sum(step >= milestone * schedule_steps for milestone in train.milestones)
        return train.lr * 0.1 ** int(passed)
    low = train.min_lr_share
    return train.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
