"""May this command continue that sweep? More trials and harmless changes are taken, another search is refused."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipelines.errors import UserError
from pipelines.files import write_atomically
from pipelines.resume import HARMLESS, flatten
from pipelines.tuning.config import TuneConfig

FILE = "sweep.yaml"
TAKEN = (*(key for key in HARMLESS if key != "evaluation."), "tune.trials", "tune.concurrent")
"""What may change between two launches; held-out measures must stay comparable, so evaluation may not."""
STAYS = ("train.max_steps", "train.validate_every")


def save_sweep(config: TuneConfig, sweep: Path) -> None:
    """Write sweep.yaml, complete."""
    write_atomically(sweep / FILE, OmegaConf.to_yaml(OmegaConf.create(keys(config))).encode())


def keys(config: TuneConfig) -> dict[str, Any]:
    """Every key and its value, as they come back from YAML; the space is one key."""
    tree: Any = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config))))
    space = tree["tune"].pop("space")
    return {**flatten(tree), "tune.space": space}


def check_resumable(config: TuneConfig, sweep: Path) -> None:
    """Raise UserError, showing the difference, where the folder holds a sweep that searched in another way."""
    path = sweep / FILE
    if not path.exists():
        if (sweep / "checkpoints").exists():
            raise UserError(f"{sweep} is a pre-training run, not a sweep: use another run.name")
        return
    if not (sweep / "trials.jsonl").exists():
        return  # it ended before its first trial
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path))
        then = keys(TuneConfig()) | saved  # keys that came later had their defaults
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is not readable ({' '.join(str(error).split())}): restore it, or use another "
                        "run.name") from error
    now = keys(config)
    changed = {key: (then.get(key), value) for key, value in now.items() if then.get(key) != value
               and (key in STAYS or not key.startswith(TAKEN))}
    if changed:
        shown = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())
        raise UserError(f"sweep {config.run.name} at {sweep} was started with another configuration ({shown}): use the "
                        "old values, or another run.name")
