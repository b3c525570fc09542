"""What the nodes of the Ray that we are connected to have, and which folders they see."""
from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROBE_S = 60.0
ANSWER_S = 5.0


@dataclass(frozen=True)
class Resources:
    """Sums over the nodes that are alive; memory and object store in bytes."""

    nodes: int
    cpus: float
    gpus: int
    memory: float
    object_store: float


def answers(address: str) -> bool:
    """Whether somebody listens at `HOST:PORT` or `ray://HOST:PORT`, where `ray.init` would try for minutes.

    True for an address without a port, such as `auto`, which Ray resolves itself.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError:
        return False
    return True


def resources() -> Resources:
    """What the cluster has."""
    import ray

    total = ray.cluster_resources()
    return Resources(len(_alive()), total.get("CPU", 0), int(total.get("GPU", 0)), total.get("memory", 0),
                     total.get("object_store_memory", 0))


def unseen(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Host -> those of `folders` (which exist here) that a task there does not see; empty for a single node.

    A probe file with a name of its own shows that it is the same folder; where this process may not write, the
    folder's presence has to do.
    """
    nodes = _alive()
    if len(nodes) < 2:
        return {}
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probes = {folder: _probe(folder) for folder in folders}
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(_missing)
        asked = {node["NodeManagerHostname"] + " " + node["NodeID"][:8]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                {str(folder): str(probe) for folder, probe in probes.items()}) for node in nodes}
        found = {host: ray.get(answer, timeout=PROBE_S) for host, answer in asked.items()}
    finally:
        for folder, probe in probes.items():
            if probe != folder:
                probe.unlink(missing_ok=True)
    return {host: missing for host, missing in found.items() if missing}


def _alive() -> list[dict[str, str]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _probe(folder: Path) -> Path:
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        probe.touch()
    except OSError:
        return folder
    return probe


def _missing(probes: dict[str, str]) -> list[str]:
    return [folder for folder, probe in probes.items() if not os.path.exists(probe)]
