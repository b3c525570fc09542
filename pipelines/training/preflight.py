"""Can the run that a configuration describes start? Its storage, store, groups, model and checkpoints, as findings.

`pretrain` demands them before anything heavy starts, `jobs/doctor.py` shows them; what the machine offers is checked
in machine.py.
"""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from deltalake.exceptions import DeltaError

from cluster import nodes
from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.finding import Finding
from pipelines.grouping.materialise import existing
from pipelines.location import Place, size_of
from pipelines.places import groups_folder
from pipelines.precision import recorded
from pipelines.resume import check_resumable
from pipelines.store.schema import row_group_sizes
from pipelines.store.table import ImageTextStore
from pipelines.training import machine
from pipelines.training.data_pin import DataPin, first_version, planned
from pipelines.training.needs import ModelSize


def attempt(name: str, check: Callable[[], object], fine: str) -> Finding:
    """The finding of a check that raises where something is wrong, with the mend in its message."""
    try:
        check()
    except (ValueError, FileNotFoundError) as error:
        return Finding(name, False, str(error))
    return Finding(name, True, fine)


def ray(environment: Mapping[str, str]) -> Finding:
    """The Ray that RAY_ADDRESS names: its token, and whether it answers."""
    found, address = machine.ray_address(environment, Path.home()), environment.get("RAY_ADDRESS", "")
    if found.ok and not nodes.answers(address):
        return Finding("Ray", False, f"RAY_ADDRESS={address} does not answer", "start the cluster, correct the "
                       "address, or unset RAY_ADDRESS to run on this machine")
    return found


def here(config: PretrainConfig) -> list[Finding]:
    """What would fail at once when Ray is connected to, or started on this machine."""
    if os.environ.get("RAY_ADDRESS"):
        return [ray(os.environ)]
    findings = [machine.cpus(config, os.cpu_count() or 1, "this machine's")]
    if config.scaling.device == "gpu":
        import torch
        findings.append(machine.device(config, torch.cuda.device_count()))
    return findings


def writable(run: Path) -> Finding:
    """Whether a file can be written in the run's folder, which is made (`os.access` is always true for root)."""
    probe = run / f".probe-{os.getpid()}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        return Finding("storage", False, f"run.storage={run.parent} cannot be written ({error.strerror})",
                       "name a writable folder")
    return Finding("storage", True, f"{run} is writable")


def store(config: PretrainConfig, path: Place) -> Finding:
    """The store: there (a named one is never built), of our columns, with samples of every split that is needed."""
    table = ImageTextStore(path)
    named = f"data.store={path}"
    if not config.data.store and not table.exists():
        return Finding("store", True, f"{path} will be built from data.source={config.data.source}")
    ingest = "ingest into it first, or leave data.store out to build the demo's"
    if not path.exists():
        return Finding("store", False, f"{named} does not exist", ingest)
    if not table.exists():
        return Finding("store", False, f"{named} is empty: it holds no image-text store with samples", ingest)
    counts: Counter[str] = Counter()
    try:
        version = first_version(config, table)
        for batch in table.iter_batches(["split"], version=version, rows=65_536):
            counts.update(batch["split"].to_pylist())
    except UserError as error:
        return Finding("store", False, str(error))
    except (ValueError, FileNotFoundError, DeltaError) as error:
        return Finding("store", False, f"{named} is no image-text store ({error})", "ingest its data anew")
    wanted = {"train": "to train on", config.evaluation.retrieval_split: "evaluation.retrieval_split",
              config.evaluation.unseen_split: "evaluation.unseen_split"}
    for split, why in wanted.items():
        if split and not counts[split]:
            return Finding("store", False, f"{named} has no samples of split {split!r} ({why})",
                           "ingest some, or name another split")
    return Finding("store", True, f"{path}: " + ", ".join(f"{counts[split]} {split}" for split in sorted(counts)))


def data_plan(config: PretrainConfig, run: Path, store_path: Place) -> DataPin:
    """What the run trains on: what it has pinned, else what its first launch takes; the store exists."""
    version = first_version(config, ImageTextStore(store_path))
    return planned(run, store_path, version, groups_folder(config, store_path, version))


def data(config: PretrainConfig, run: Path, store_path: Place) -> Finding:
    """The run's store is the one that it started with; its groups are absent, or of this G, store and method."""
    from pipelines.grouping.build import configure

    def check() -> None:
        plan = data_plan(config, run, store_path)
        existing(Path(plan.groups), configure(config.groups, config.model.text, ImageTextStore(store_path),
                                              plan.version, config.run.seed))

    fine = "their folder is there" if grouped(config, run, store_path) else "they will be built"
    return attempt("groups", check, fine)


def grouped(config: PretrainConfig, run: Path, store_path: Place) -> bool:
    """Whether the groups' folder is there."""
    try:
        return ImageTextStore(store_path).exists() and Path(data_plan(config, run, store_path).groups).exists()
    except UserError:  # said by `data`
        return False


def stored(path: Place) -> tuple[int, int]:
    """Bytes and rows of the store's newest version; zeros where there is none."""
    table = ImageTextStore(path)
    files = table.files() if table.exists() else []
    return sum(map(size_of, files)), sum(sum(row_group_sizes(file)) for file in files)


def resumable(config: PretrainConfig, run: Path) -> Finding:
    """Whether this configuration may continue the run."""
    return attempt("run", lambda: check_resumable(recorded(config, run), run),
                   f"{run} {'continues' if any((run / 'checkpoints').glob('step-*')) else 'is a new run'}")


def model(config: PretrainConfig) -> tuple[Finding, ModelSize]:
    """Whether the model can be built here, with its initial weights and tokenizer; and its size."""
    from ashnets.processing import Tokenizer
    from pipelines.feed.plan import feed_plan
    from pipelines.training.model import build_model

    sizes = [ModelSize(0, 0)]

    def check() -> None:
        plan = feed_plan(config, "")
        Tokenizer(plan.tokenizer, plan.max_tokens)
        counts = [(p.numel(), p.requires_grad) for p in build_model(config).parameters()]
        sizes.append(ModelSize(sum(count for count, _ in counts), sum(count for count, learns in counts if learns)))

    found = attempt("model", check, "")
    size = sizes[-1]
    if found.ok:
        found = Finding("model", True, f"{size.parameters / 1e6:.1f} million parameters, "
                                       f"{size.trainable / 1e6:.1f} million of them learn")
    return found, size


def continues(run: Path) -> Finding:
    """Where the run would go on; a damaged checkpoint is passed over, and its file named."""
    from pipelines.training import checkpoint
    damaged: list[str] = []

    def pass_over(folder: Path, why: str) -> None:
        damaged.append(f"{folder.name} is damaged ({why})")

    newest = checkpoint.newest(run, pass_over)
    finding = f"the run continues from step {newest[1].step}" if newest else "none: the run starts at step 0"
    advice = "a launch sets it aside as checkpoints/damaged-..." if damaged else ""
    return Finding("checkpoint", True, "; ".join([finding, *damaged]), advice)
