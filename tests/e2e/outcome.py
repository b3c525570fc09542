"""What any two runs of the tiny configuration have in common, whatever happened to them on the way."""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.e2e.conftest import lines

STEPS = 12
STEP_GROUPS = 8


def positions(folder: Path) -> list[tuple[int, int]]:
    """(position, step) of every group trained on, in order."""
    return sorted((line["position"], line["step"]) for line in recorded(folder / "samples"))


def assert_each_position_once(folder: Path, steps: int = STEPS) -> None:
    assert positions(folder) == [(p, p // STEP_GROUPS + 1) for p in range(steps * STEP_GROUPS)]


def assert_same_bytes(a: Path, b: Path) -> None:
    """Both runs fed the same bytes at every position, steps that were replayed after a checkpoint included."""
    expected = {line["position"]: line["checksum"] for line in recorded(b / "samples")}
    assert {line["position"]: line["checksum"] for line in recorded(a / "samples")} == expected
    for line in recorded(a / "superseded" / "samples"):
        assert line["checksum"] == expected[line["position"]], line


def recorded(folder: Path) -> list[dict]:
    """The lines of a folder of sample records."""
    return [line for path in folder.glob("rank-*.jsonl") for line in lines(path)]


def assert_each_step_once(folder: Path, steps: int = STEPS) -> None:
    assert [line["step"] for line in lines(folder / "metrics.jsonl") if "loss" in line] == list(range(1, steps + 1))


def assert_same_weights(a: Path, b: Path) -> None:
    mine, other = load_file(a / "export" / "model.safetensors"), load_file(b / "export" / "model.safetensors")
    assert mine.keys() == other.keys()
    for name in mine:
        assert torch.equal(mine[name], other[name]), name
