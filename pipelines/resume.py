"""May this command continue that run? Harmless changes are taken, changed mathematics is refused."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import write_atomically
from pipelines.training import checkpoint

HARMLESS = ("run.name", "run.storage", "run.takeover", "train.max_steps", "train.log_every", "train.validate_every",
            "scaling.", "checkpoint.", "evaluation.",
            "feed.record_samples", "feed.max_bad_share", "train.max_nonfinite")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def text_of(config: PretrainConfig) -> str:
    """The configuration as YAML, complete."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def save_config(config: PretrainConfig, run: Path) -> None:
    """Write config.yaml, complete."""
    write_atomically(run / "config.yaml", text_of(config).encode())


def load_config(run: Path) -> PretrainConfig:
    """The configuration of a run, or the one in a checkpoint; UserError where this version cannot read it."""
    path = run / "config.yaml"
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), OmegaConf.load(path))
        config = OmegaConf.to_object(merged)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is no configuration of this version ({' '.join(str(error).split())}): restore it, or "
                        "name another run") from error
    assert isinstance(config, PretrainConfig)
    return config


def _keys(config: PretrainConfig) -> dict[str, Any]:
    """Every key and its value, as they come back from YAML."""
    tree = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config))))
    assert isinstance(tree, dict)
    return flatten({str(key): value for key, value in tree.items()})


def config_hash(config: PretrainConfig) -> str:
    """SHA-256 of the settings that belong to the mathematics: equal for runs that compute the same."""
    mathematics = {key: value for key, value in _keys(config).items() if not key.startswith(HARMLESS)}
    return hashlib.sha256(json.dumps(mathematics, sort_keys=True).encode()).hexdigest()


def changed(config: PretrainConfig, run: Path) -> dict[str, tuple[Any, Any]]:
    """Keys whose value differs between the config.yaml in folder `run` and `config`: key -> (then, now)."""
    then, now = _keys(load_config(run)), _keys(config)
    return {key: (then[key], now[key]) for key in sorted(now) if then[key] != now[key]}


def check_resumable(config: PretrainConfig, run: Path) -> None:
    """Raise UserError, showing the difference, where `config` changes the mathematics of a run with checkpoints.

    Each checkpoint holds the configuration that made it, so that an edited config.yaml cannot hide a change.
    """
    found = checkpoint.newest(run)
    if found and config.tasks.itc.gather and config.scaling.workers != found[1].world_size:
        raise UserError(f"run {config.run.name} contrasts over all workers (tasks.itc.gather=true) and was trained by "
                        f"{found[1].world_size}: resume it with scaling.workers={found[1].world_size}")
    for folder in (run, found[0]) if found else ():
        if not (folder / "config.yaml").exists():
            continue
        grave = {key: values for key, values in changed(config, folder).items() if not key.startswith(HARMLESS)}
        if grave:
            shown = "; ".join(f"{key}: {then!r} -> {now!r}" for key, (then, now) in grave.items())
            raise UserError(f"run {config.run.name} at {run} was started with another configuration ({shown}): "
                            "use the old values, or another run.name")
