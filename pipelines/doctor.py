"""Everything that would make a run hang or fail, looked at in one go; a launch demands the part that is certain."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cluster import comm_op, nodes
from cluster.connection import connect
from cluster.paths import REPOSITORY
from pipelines.config import PretrainConfig
from pipelines.disk import free_bytes
from pipelines.finding import Finding
from pipelines.location import Place
from pipelines.places import run_folder, store_folder
from pipelines.precision import cpu_has_bf16
from pipelines.training import machine, preflight
from pipelines.training.needs import ModelSize


def examine(config: PretrainConfig, root: Path) -> Iterator[Finding]:
    """Findings one after the other, the quick ones first; connects to Ray for those about the cluster.

    Leaves nothing behind.
    """
    run, store = run_folder(config, root), store_folder(config.data, root)
    was_there = run.exists()
    project = REPOSITORY / "pyproject.toml"
    if project.exists():
        yield machine.python(project)
        yield machine.packages(project, () if config.data.store else ("demo",))
    ray = preflight.ray(os.environ)
    yield ray
    yield preflight.resumable(config, run)
    found = preflight.store(config, store)
    yield found
    if found.ok and preflight.stored(store)[1]:
        yield preflight.data(config, run, store)
    found, size = preflight.model(config)
    yield found
    yield preflight.continues(run)
    found = preflight.writable(run)
    yield found
    if ray.ok:
        connect()
        yield from certain(config, run, store)
        yield from estimates(config, size, run, store)
    if found.ok and not was_there:
        run.rmdir()


def certain(config: PretrainConfig, run: Path, store: Place) -> list[Finding]:
    """What the connected cluster must have."""
    have = nodes.resources()
    device = machine.device(config, have.gpus)
    cpu = uses_cpu([device])
    return [
        machine.cpus(config, have.cpus),
        device,
        machine.communication_op(comm_op.built(), shutil.which("c++") or shutil.which("g++"), cpu),
        machine.shared_memory(config, cpu, free_bytes(Path("/dev/shm"))),
        machine.visible(nodes.unseen(folder for folder in (run, store)
                                      if isinstance(folder, Path) and folder.exists()), have.nodes),
    ]


def estimates(config: PretrainConfig, size: ModelSize, run: Path, store: Place) -> list[Finding]:
    """What the run will probably need of the connected cluster."""
    have = nodes.resources()
    size_of_store, rows = preflight.stored(store)
    groups = store if isinstance(store, Path) else Path(config.groups.path).expanduser().absolute()
    return [
        machine.memory(config, size, have.memory, uses_cpu([machine.device(config, have.gpus)])),
        machine.object_store(config, size_of_store / rows if rows else 10_000, have.object_store),
        machine.disk(config, size, run, free_bytes(run)),
        machine.precision(config, uses_cpu([machine.device(config, have.gpus)]), cpu_has_bf16()),
        machine.store_disk(groups, size_of_store, preflight.grouped(config, run, store), free_bytes(groups)),
    ]


def uses_cpu(findings: list[Finding]) -> bool:
    """Whether the finding about the device says that the workers train on CPUs."""
    return not any(found.name == "device" and found.finding.startswith("cuda") for found in findings)
