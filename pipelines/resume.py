"""May this command continue that run? Harmless changes are taken, changed mathematics is refused."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import write_atomically

HARMLESS = ("run.name", "run.storage", "run.takeover", "train.max_steps", "train.log_every", "train.validate_every",
            "scaling.workers", "scaling.device", "scaling.cpus_per_worker", "checkpoint.", "evaluation.",
            "feed.record_samples")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def save_config(config: PretrainConfig, run: Path) -> None:
    """Write config.yaml, complete."""
    write_atomically(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)).encode())


def load_config(run: Path) -> PretrainConfig:
    """The configuration in config.yaml; UserError where this version cannot read it."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), OmegaConf.load(run / "config.yaml"))
        config = OmegaConf.to_object(merged)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise UserError(f"{run / 'config.yaml'} is no configuration of this version "
                        f"({' '.join(str(error).split())}): name a run that this version wrote") from error
    assert isinstance(config, PretrainConfig)
    return config


def changed(config: PretrainConfig, run: Path) -> dict[str, tuple[Any, Any]]:
    """Keys whose value differs between the run's config.yaml and `config`: key -> (then, now)."""
    def plain(source: Any) -> dict[str, Any]:
        tree = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(source)))
        assert isinstance(tree, dict)
        return flatten({str(key): value for key, value in tree.items()})
    then = plain(OmegaConf.load(run / "config.yaml"))
    now = plain(OmegaConf.structured(config))
    return {key: (then.get(key), now.get(key)) for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key)}


def check_resumable(config: PretrainConfig, run: Path) -> None:
    """Raise UserError, showing the difference, where `config` changes the mathematics of a run with checkpoints."""
    if not (run / "config.yaml").exists() or not any((run / "checkpoints").glob("step-*")):
        return
    grave = {key: values for key, values in changed(config, run).items() if not key.startswith(HARMLESS)}
    if grave:
        shown = "; ".join(f"{key}: {then!r} -> {now!r}" for key, (then, now) in grave.items())
        raise UserError(f"run {config.run.name} at {run} was started with another configuration ({shown}): "
                        "use the old values, or another run.name")
