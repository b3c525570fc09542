"""What a checkpoint is: a folder that is complete or absent, with a manifest of checksums, committed by one rename.

Layout: `checkpoints/step-00000050/` holds the files that the ranks wrote (DeepSpeed's shards below `state/`), the
run's `config.yaml`, and `manifest.json`, written last. DeepSpeed unpickles what it loads, so only folders of this run
whose manifest checks out are ever handed to it. What is damaged is set aside, never deleted.
"""
from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.files import sync, write_atomically
from pipelines.training.lease import check_attempt, holding
from pipelines.training.run_directory import read_lines

FORMAT = 2
MANIFEST, IDENTITY = "manifest.json", "identity.json"
NO_MANIFEST = (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, KeyError,
               AttributeError)
"""What is raised where a file is not what `_sealed` wrote."""
Digest = tuple[int, str]
"""A file's size and SHA-256."""
Damaged = Callable[[Path, str], object]
"""Is told of a folder that does not check out, and why."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is: where training stood, who wrote it and by what, and every file's size and SHA-256."""

    step: int
    position: int
    world_size: int
    zero_stage: int
    attempt: int
    seed: int
    seconds: float
    config_hash: str
    """Of the settings that belong to the mathematics: `pipelines.resume.config_hash`."""
    code_version: str
    score: float | None = None
    """The best mean of held-out i2t and t2i R@5 since the checkpoint before; None where none was measured."""
    run: str = ""
    """Identity of the run, the same in all its checkpoints; `commit` fills it in."""
    files: dict[str, Digest] = field(default_factory=dict)
    format: int = FORMAT


def folders(run: Path) -> list[Path]:
    """Committed checkpoint folders, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def temporary_folder(run: Path, step: int, attempt: int) -> Path:
    """Where the ranks write before the commit; the same on every rank."""
    return run / "checkpoints" / f".tmp-{step:08d}-{attempt}"


def digest(path: Path) -> Digest:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


class ReadOnce:
    """Digests of files, each read once: again only where its inode, size or times have changed.

    For whoever looks after checkpoints in passing. Whoever resumes from one uses `digest`, which reads what is there.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Digest] = {}

    def know(self, path: Path, found: Digest) -> None:
        """Remember what a file was found to be."""
        self._known[self._stamp(path)] = found

    def __call__(self, path: Path) -> Digest:
        """Size and SHA-256 of a file."""
        stamp = self._stamp(path)
        if stamp not in self._known:
            self._known[stamp] = digest(path)
        return self._known[stamp]

    def keep(self, folders: Iterable[Path]) -> None:
        """Forget all but the files below `folders`."""
        stamps = {self._stamp(path) for folder in folders for _, path in _files(folder) if path.is_file()}
        self._known = {stamp: found for stamp, found in self._known.items() if stamp in stamps}

    @staticmethod
    def _stamp(path: Path) -> tuple[int, ...]:
        status = path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Everything below `folder` that is no folder, by its name there; the manifest is left out."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name != MANIFEST and (path.is_symlink() or not path.is_dir()):
            yield name, path


def identity(run: Path) -> str:
    """What marks the run's checkpoints as its own: drawn when the first is committed, empty before.

    Where its small file is lost or damaged, the newest readable manifest says it.
    """
    for path in (run / "checkpoints" / IDENTITY, *(folder / MANIFEST for folder in reversed(folders(run)))):
        try:
            return str(_unsealed(path)["run"])
        except NO_MANIFEST:
            continue
    return ""


def commit(run: Path, manifest: Manifest) -> Path:
    """Turn the temporary folder that all ranks have filled into the checkpoint that `manifest` tells of.

    Rank 0 alone calls this. `manifest.files` holds what is known of the files; the others are read. Raises Fenced
    where the attempt has lost the run's lease; then nothing is committed.
    """
    folder = temporary_folder(run, manifest.step, manifest.attempt)
    if (run / "config.yaml").exists():
        shutil.copy(run / "config.yaml", folder)
    for path in (folder, *folder.rglob("*")):
        sync(path)
    known = identity(run) or secrets.token_hex(16)
    write_atomically(run / "checkpoints" / IDENTITY, _sealed({"run": known}))
    files = {name: manifest.files.get(name) or digest(path) for name, path in _files(folder)}
    manifest = replace(manifest, run=known, files=files)
    write_atomically(folder / MANIFEST, _sealed(asdict(manifest)))
    final = run / "checkpoints" / f"step-{manifest.step:08d}"
    with holding(run, manifest.attempt):
        if final.exists():  # it did not check out, else training would have gone on behind it
            set_aside(final, f"training came to step {manifest.step} again")
        os.rename(folder, final)
    sync(final.parent)
    return final


def _sealed(facts: dict[str, Any]) -> bytes:
    """A JSON file of facts with the SHA-256 over them, which guards the file itself."""
    return json.dumps(facts | {"sha256": _checksum(facts)}, indent=1).encode()


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _unsealed(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text())
    if facts.pop("sha256") != _checksum(facts):
        raise ValueError("it differs from its checksum")
    return facts


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a committed checkpoint.

    One of NO_MANIFEST where it is none; UserError where it is whole, but another version's.
    """
    facts = _unsealed(folder / MANIFEST)
    if facts["format"] != FORMAT:
        raise UserError(f"checkpoint {folder} has format {facts['format']}, this version reads {FORMAT}: resume with "
                        "the version that wrote it, or use another run.name")
    files = {name: (int(size), str(sha256)) for name, (size, sha256) in facts["files"].items()}
    return Manifest(**{**facts, "files": files})


def fault(folder: Path, run_identity: str, read: Callable[[Path], Digest] = digest) -> str | None:
    """Why `folder` is not a whole checkpoint of the run with this identity, or None where it is.

    Raises UserError for another version's; OSError where the disk does not answer, which is no damage yet.
    """
    try:
        manifest = read_manifest(folder)
    except UserError:
        raise
    except NO_MANIFEST as error:
        return f"manifest.json cannot be read ({type(error).__name__}: {error})"
    if folder.name != f"step-{manifest.step:08d}":
        return f"manifest.json is that of step {manifest.step}"
    if manifest.run != run_identity:
        return "manifest.json is that of another run"
    present = dict(_files(folder))
    for name in sorted(set(present) | set(manifest.files)):
        if name not in present:
            return f"{name} is missing"
        if name not in manifest.files:
            return f"{name} is not in the manifest"
        if present[name].is_symlink() or not present[name].is_file():
            return f"{name} is no plain file"
        if read(present[name]) != manifest.files[name]:
            return f"{name} differs from its checksum"
    return None


def whole(run: Path, damaged: Damaged = lambda folder, why: None,
          read: Callable[[Path], Digest] = digest) -> Iterator[tuple[Path, Manifest]]:
    """The checkpoints of `run` that check out, newest first; `damaged` is told of the others passed on the way."""
    known = identity(run)
    for folder in reversed(folders(run)):
        why = fault(folder, known, read)
        if why is None:
            yield folder, read_manifest(folder)
        else:
            damaged(folder, why)


def newest(run: Path, damaged: Damaged = lambda folder, why: None) -> tuple[Path, Manifest] | None:
    """The newest checkpoint that checks out, or None."""
    return next(whole(run, damaged), None)


def set_aside(folder: Path, why: str) -> Path:
    """Rename a damaged checkpoint so that no reader meets it again, and note it in `checkpoints/damaged.jsonl`."""
    aside = folder.with_name(f"damaged-{folder.name}")
    count = 1
    while aside.exists():
        count += 1
        aside = folder.with_name(f"damaged-{folder.name}-{count}")
    os.rename(folder, aside)
    sync(aside.parent)
    with open(aside.parent / "damaged.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"checkpoint": folder.name, "folder": aside.name, "why": why}) + "\n")
    return aside


def damages(run: Path) -> list[str]:
    """A warning for each checkpoint of the run that was set aside, in the order in which that happened."""
    path = run / "checkpoints" / "damaged.jsonl"
    return [f"checkpoint {note['checkpoint']} is damaged ({note['why']}): it was set aside as "
            f"{path.parent / note['folder']}, and the one before it is used" for note in read_lines(path)]


def remove(folder: Path) -> None:
    """Delete a checkpoint; a crash in the middle leaves nothing that looks like a damaged one."""
    gone = folder.with_name(f".tmp-removed-{folder.name}")
    os.rename(folder, gone)
    shutil.rmtree(gone)


def resume_point(run: Path, attempt: int) -> tuple[Path, Manifest] | None:
    """The newest checkpoint that checks out, for whoever writes the run from now on.

    Sets damaged ones aside and removes what a crash left half written. Raises Fenced where the lease is lost.
    """
    check_attempt(run, attempt)
    for left in (run / "checkpoints").glob(".*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return newest(run, set_aside)
