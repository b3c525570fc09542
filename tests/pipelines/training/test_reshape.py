"""A run goes on with other workers and another ZeRO stage: real processes restore what others have checkpointed."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines.training import checkpoint
from tests.pipelines.training.launch import run_ranks
from tests.pipelines.training.reshape_ranks import CHAINS

pytestmark = [pytest.mark.full, pytest.mark.timeout(400)]
LINKS = [(chain, number) for chain, (_, links) in CHAINS.items() for number in range(1, len(links))]


def name(link: tuple[str, int]) -> str:
    """Such as `workers:1x2->2x2` (workers x ZeRO stage)."""
    (before, after) = (CHAINS[link[0]][1][number] for number in (link[1] - 1, link[1]))
    return f"{link[0]}:{before[0]}x{before[1]}->{after[0]}x{after[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all the processes wrote."""
    path = tmp_path_factory.mktemp("reshape")
    run_ranks("reshape_ranks", path, 360)
    return path


def results(folder: Path, chain: str, number: int) -> dict[str, dict[str, Tensor]]:
    """What rank 0 of a link wrote."""
    return torch.load(folder / f"{chain}-{number}.pt", weights_only=True)


@pytest.mark.parametrize("link", LINKS, ids=map(name, LINKS))
def test_everything_is_carried_to_the_last_bit(folder, link):
    """Weights, both moments, running statistics, cross-batch memory, dictionary."""
    chain, number = link
    before, after = results(folder, chain, number - 1)["saved"], results(folder, chain, number)["loaded"]
    assert {key.split("/")[0] for key in after} == {"weight", "exp_avg", "exp_avg_sq", "buffer"}
    assert after.keys() <= before.keys() and {key for key in before if key.startswith("buffer/")} <= after.keys()
    assert [key for key in after if not torch.equal(before[key], after[key])] == []
    assert sum(bool(after[key].any()) for key in after if key.startswith("exp_avg/")) > 20, "there was nothing to carry"


@pytest.mark.parametrize("link", LINKS, ids=map(name, LINKS))
def test_the_next_step_is_that_of_the_uninterrupted_run(folder, link):
    """Losses and gradient norm; the step that the weights make (below 1e-5, in fp32), for which AdamW's count and
    moments must be right; and every group's learning rate and decay."""
    chain, number = link
    before, resumed = results(folder, chain, number - 1), results(folder, chain, number)["saved"]
    losses = [key for key in resumed if key.split("/")[0] in ("loss", "grad_norm")]
    assert len(losses) == 7
    for key in losses:
        assert float(resumed[key]) == pytest.approx(float(before["next"][key]), rel=1e-5), key
    groups = [key for key in resumed if key.startswith("group/")]
    assert groups and {key.split("/")[2] for key in groups} >= {"lr", "lr_factor", "weight_decay", "betas", "eps"}
    uninterrupted = results(folder, chain, 0)["saved"]
    for key in groups:
        if not key.endswith("/lr"):  # follows the step
            assert torch.equal(resumed[key], uninterrupted[key]), key
    weights = [key for key in resumed if key.startswith("weight/")]
    made, expected = (torch.cat([(side[key] - before["saved"][key]).flatten().double() for key in weights])
                      for side in (resumed, before["next"]))
    assert float(expected.norm()) > 0
    assert float((made - expected).norm() / expected.norm()) < 3e-2


def bit_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
@pytest.mark.parametrize("damage", [bit_flip, Path.unlink, lambda path: torch.save({"module": {}}, path)],
                         ids=["a bit", "missing", "another"])
def test_damaged_shards_are_named_and_the_checkpoint_before_is_used(folder, tmp_path, name, damage):
    run = tmp_path / "run"
    shutil.copytree(folder / "workers", run)
    damage(run / "checkpoints" / "step-00000006" / "state" / name)
    told: list[str] = []
    assert checkpoint.newest(run, lambda folder, why: told.append(f"{folder.name}: {why}"))[1].step == 5
    assert len(told) == 1 and told[0].startswith("step-00000006: ") and name in told[0]


def test_nothing_is_left_beside_the_checkpoints(folder):
    for chain, (_, links) in CHAINS.items():
        left = {path.name for path in (folder / chain / "checkpoints").iterdir()}
        assert left == {"identity.json", *(f"step-{3 + number:08d}" for number in range(len(links) - 2, len(links)))}
