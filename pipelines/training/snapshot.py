"""DeepSpeed's shards as copies in host memory, which a thread can write while training goes on."""
from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor

Shards = dict[Path, Any]
"""File -> the state that belongs into it, all tensors in host memory and nobody else's."""


def to_host(value: Any) -> Any:
    """A deep copy of a state with every tensor in host memory; a view comes without the rest of its storage."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the class and the version numbers of a module's state
        for key in value:
            copied[key] = to_host(value[key])
        return copied
    if isinstance(value, list | tuple):
        parts = [to_host(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return copy.deepcopy(value)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


class HostSnapshot(TorchCheckpointEngine):
    """Takes DeepSpeed's place to write: `save_checkpoint` fills `shards`, and loading is DeepSpeed's own."""

    def __init__(self) -> None:
        super().__init__()
        self.shards: Shards = {}

    def save(self, state_dict: Any, path: str) -> None:
        """Keep a copy of one file's state."""
        self.shards[Path(path)] = to_host(state_dict)

    def take(self) -> Shards:
        """What was saved since the last call."""
        shards, self.shards = self.shards, {}
        return shards


def write(shards: Shards) -> None:
    """Write every shard and flush it to the disk."""
    for path, state in shards.items():
        with open(path, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
