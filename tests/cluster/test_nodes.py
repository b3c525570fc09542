"""What is asked of every node, on a real Ray."""
from __future__ import annotations

import socket
from pathlib import Path
from types import ModuleType

import pytest

from cluster import nodes


def test_resources_are_rays(ray_local: ModuleType) -> None:
    have = nodes.resources()
    assert (have.nodes, have.cpus, have.gpus) == (1, 2, 0) and have.memory > 0 and have.object_store > 0


def test_a_single_node_needs_no_probe(ray_local: ModuleType) -> None:
    assert nodes.unseen([Path("/nowhere")]) == {}


def test_tasks_on_every_node_look_for_the_probe(ray_local: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                                tmp_path: Path) -> None:
    """The one node, asked twice under two names, sees what is there and not what is not."""
    node = nodes._alive()[0]
    monkeypatch.setattr(nodes, "_alive", lambda: [node | {"NodeManagerHostname": name} for name in ("a", "b")])
    assert nodes.unseen([tmp_path]) == {}
    missing = nodes.unseen([tmp_path, tmp_path / "absent"])
    assert [host[0] for host in missing] == ["a", "b"]
    assert all(folders == [str(tmp_path / "absent")] for folders in missing.values())
    assert list(tmp_path.iterdir()) == []  # no probe is left


def test_whether_an_address_answers() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert nodes.answers(f"127.0.0.1:{port}") and nodes.answers(f"ray://127.0.0.1:{port}")
    assert not nodes.answers(f"127.0.0.1:{port}") and not nodes.answers(f"ray://127.0.0.1:{port}")
    assert nodes.answers("auto") and nodes.answers("")
