"""Checkpoints that are complete or absent: a manifest with checksums, committed by one rename.

Layout: `checkpoints/step-00000050/` holds the files that the ranks wrote (DeepSpeed's shards below `state/`), the
run's `config.yaml`, and `manifest.json`, written last. DeepSpeed unpickles what it loads, so only folders whose
manifest is ours and checks out are ever handed to it.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.files import sync, write_atomically
from pipelines.training.lease import check_attempt

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is: where training stood, who wrote it, and every file's size and SHA-256."""

    step: int
    position: int
    world_size: int
    zero_stage: int
    attempt: int
    seed: int
    seconds: float
    files: dict[str, tuple[int, str]]
    format: int = FORMAT


def _folders(run: Path) -> list[Path]:
    """Committed checkpoint folders, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def temporary_folder(run: Path, step: int, attempt: int) -> Path:
    """Where the ranks write before the commit; the same on every rank."""
    return run / "checkpoints" / f".tmp-{step:08d}-{attempt}"


def _digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _inventory(folder: Path) -> dict[str, tuple[int, str]]:
    return {str(p.relative_to(folder)): _digest(p) for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name != "manifest.json"}


def commit(run: Path, *, step: int, position: int, world_size: int, zero_stage: int, attempt: int, seed: int,
           seconds: float) -> Path:
    """Turn the temporary folder that all ranks have filled into the checkpoint of `step` (rank 0 alone calls this).

    Raises Fenced where `attempt` lost the run's lease; then nothing is committed.
    """
    folder = temporary_folder(run, step, attempt)
    if (run / "config.yaml").exists():
        shutil.copy(run / "config.yaml", folder)
    for path in folder.rglob("*"):
        sync(path)
    manifest = Manifest(step, position, world_size, zero_stage, attempt, seed, seconds, _inventory(folder))
    write_atomically(folder / "manifest.json", json.dumps(asdict(manifest), indent=1).encode())
    check_attempt(run, attempt)
    final = run / "checkpoints" / f"step-{step:08d}"
    if final.exists():
        shutil.rmtree(final)
    os.rename(folder, final)
    sync(final.parent)
    return final


def fault(folder: Path) -> str | None:
    """Why `folder` is not a whole checkpoint of ours, or None where it is."""
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError, TypeError) as error:
        return f"manifest.json cannot be read ({error})"
    if manifest.format != FORMAT:
        return f"manifest.json has format {manifest.format}, this version reads {FORMAT}"
    present = _inventory(folder)
    for name in sorted(set(present) | set(manifest.files)):
        if name not in present:
            return f"{name} is missing"
        if name not in manifest.files:
            return f"{name} is not in the manifest"
        if present[name] != manifest.files[name]:
            return f"{name} differs from its checksum"
    return None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a committed checkpoint."""
    raw = json.loads((folder / "manifest.json").read_text())
    raw["files"] = {name: (int(size), str(digest)) for name, (size, digest) in raw["files"].items()}
    return Manifest(**raw)


def newest(run: Path, warn: list[str] | None = None) -> tuple[Path, Manifest] | None:
    """The newest checkpoint that checks out, or None; each damaged one passed over adds a line to `warn`."""
    for folder in reversed(_folders(run)):
        why = fault(folder)
        if why is None:
            return folder, read_manifest(folder)
        if warn is not None:
            warn.append(f"checkpoint {folder.name} is damaged and was passed over: {why}")
    return None


def retain(run: Path, keep: int) -> None:
    """Remove what no resume needs: temporary folders of earlier attempts, and all but the newest `keep`."""
    for folder in _folders(run)[:-keep]:
        shutil.rmtree(folder)
    for folder in (run / "checkpoints").glob(".tmp-*"):
        shutil.rmtree(folder)
