"""Seeds derived from names, so that every random draw is a function of (seed, what it is for) alone."""
from __future__ import annotations

import hashlib

import torch


def derive(*parts: object) -> int:
    """A 63-bit seed from `parts`, the same in every process and version."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_micro_batch(seed: int, position: int) -> torch.Generator:
    """Reseed torch for the micro-batch at `position` of the stream; the returned CPU generator draws its masks.

    This is why no random state needs a checkpoint and any number of workers computes the same step.
    """
    torch.manual_seed(derive(seed, "dropout", position))
    return torch.Generator().manual_seed(derive(seed, "tasks", position))
