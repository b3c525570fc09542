"""A run that is cut anywhere goes on to the last bit: ten random cuts on one rank and on two, in real processes."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipelines.training.cut_ranks import CASES, CUTS
from tests.pipelines.training.launch import run_ranks

pytestmark = [pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all the processes wrote."""
    path = tmp_path_factory.mktemp("cuts")
    run_ranks("cut_ranks", path, 360)
    return path


@pytest.mark.full
@pytest.mark.parametrize("case", [case.name for case in CASES])
def test_ten_random_cuts_change_no_bit(folder, case):
    """Losses, gradient norm, weights, both moments, running statistics, memory and dictionary two steps behind each;
    masks and dropout are drawn anew from seed and position."""
    different = json.loads((folder / f"{case}.json").read_text())
    assert len(different) == CUTS and all(names == [] for names in different.values()), different
