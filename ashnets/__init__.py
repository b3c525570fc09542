"""ASH-Nets: `ashnets.load("runs/demo/export")` gives a trained model and its processor; `import ashnets` is light."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ashnets.config import ModelConfig, TasksConfig
    from ashnets.model import ASHNet
    from ashnets.pretrained import ASHNetsConfig, ASHNetsModel, ASHNetsProcessor, load

_HOMES = {
    "ASHNet": "model", "ASHNetsConfig": "pretrained", "ASHNetsModel": "pretrained", "ASHNetsProcessor": "pretrained",
    "ModelConfig": "config", "TasksConfig": "config", "load": "pretrained",
}
__all__ = ["ASHNet", "ASHNetsConfig", "ASHNetsModel", "ASHNetsProcessor", "ModelConfig", "TasksConfig", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for (PEP 562): torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
