"""Which weights `model=` and `init=` name: a run, or an export (no torch or ray import)."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.location import folder_of

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class ModelSource:
    """An export's folder, which holds `model.safetensors`, and the run that it belongs to, where there is one."""

    export: Path
    run: Path | None

    @property
    def weights(self) -> Path:
        """The weights, one safetensors file."""
        return self.export / WEIGHTS


def find_model(key: str, location: str, root: Path) -> ModelSource:
    """The model at `location`: the folder of a run or of an export, or the name of a run below `root`/runs.

    Empty: the demo run. Raises UserError, which names `key`, where there is none, or no weights in it.
    """
    if not location:
        location = str(root / "runs" / "demo")
        if not Path(location).exists():
            raise UserError(f"{key} is empty and there is no demo run at {location}: name a run or an export, "
                            f"{key}=PATH")
    path = folder_of(key, location, "models")
    if not path.exists() and (root / "runs" / location).exists():
        path = (root / "runs" / location).absolute()
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{key}={location}: {path} {what}; name the folder of a run or of an export")
    if (path / "config.yaml").exists():
        if not (path / "export" / WEIGHTS).is_file():
            raise UserError(f"{key}={location}: the run has no export yet; a launch writes it at its end: let the run "
                            "go on to there, or to a train.max_steps")
        return ModelSource(path / "export", path)
    if not (path / WEIGHTS).is_file():
        raise UserError(f"{key}={location}: {path} is neither a run (no config.yaml) nor an export (no {WEIGHTS}; "
                        "weights in other formats are never read)")
    run = path.parent if path.name == "export" and (path.parent / "config.yaml").exists() else None
    return ModelSource(path, run)


def complete_export(key: str, location: str, root: Path) -> Path:
    """The folder of an export that `ashnets.load` can read; UserError where it is not complete."""
    source = find_model(key, location, root)
    missing = [name for name in (CONFIG, "processor_config.json", "tokenizer.json")
               if not (source.export / name).is_file()]
    if missing:
        mend = (f"complete it with `python jobs/export.py model={source.run}`" if source.run
                else "export it anew with jobs/export.py")
        raise UserError(f"{key}={location}: {source.export} lacks {', '.join(missing)}: {mend}")
    return source.export
