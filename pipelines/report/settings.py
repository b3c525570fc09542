"""The configuration of a run as a table: every key, its value, and the default where it differs."""
from __future__ import annotations

from typing import Any, NamedTuple

from omegaconf import OmegaConf

from pipelines.config import PretrainConfig
from pipelines.resume import flatten


class Setting(NamedTuple):
    """One key of the configuration."""

    key: str
    value: str
    default: str

    @property
    def changed(self) -> bool:
        """Whether the run differs from the default."""
        return self.value != self.default


def settings(config: PretrainConfig) -> list[Setting]:
    """All keys in the order of the configuration classes."""
    values, defaults = _flat(config), _flat(PretrainConfig())
    return [Setting(key, value, defaults[key]) for key, value in values.items()]


def _flat(config: PretrainConfig) -> dict[str, str]:
    tree: Any = OmegaConf.to_container(OmegaConf.structured(config))
    return {key: _shown(value) for key, value in flatten(tree).items()}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)
