"""One mathematics on any cluster: real processes of several world sizes and ZeRO stages train the same model."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.pipelines.training.equivalence_cases import CASES
from tests.pipelines.training.launch import run_ranks

pytestmark = [
    pytest.mark.timeout(900),  # the first test waits for all the processes
]
Results = dict[str, Any]
FULL = os.environ.get("CHAOS") == "full"
WHOLE_FORM_ONLY = ("spikes-world2-zero1", "dictionary-world3-zero3", "frozen-world2-zero3",
                   "spikes-fast-world1-zero0", "spikes-fast-world2-zero2",
                   *(f"dictionary-fp64-world2-zero{stage}" for stage in range(3)))
"""Cases that only `CHAOS=full make chaos` trains: others hold nearly the same."""
KINDS = ("loss", "firing_rate", "grad_norm", "exp_avg", "exp_avg_sq", "weight", "buffer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all the processes wrote."""
    path = tmp_path_factory.mktemp("equivalence")
    run_ranks("equivalence_ranks", path, 840,
              *(case.name for case in CASES if FULL or case.name not in WHOLE_FORM_ONLY))
    return path


def each(*names: str) -> list[Any]:
    """Parameters; those of the whole form alone are marked."""
    return [pytest.param(name, marks=[pytest.mark.full] if any(
        name == whole or f"dictionary-fp64-{name}" == whole for whole in WHOLE_FORM_ONLY) else []) for name in names]


@pytest.fixture(scope="module")
def results(folder: Path) -> Callable[[str], Results]:
    """`results(case)`: what its rank 0 wrote."""
    return lambda case: torch.load(folder / f"{case}.pt", weights_only=True)


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative distance of the two, each taken as one vector."""
    a, b = (torch.cat([tensor.double().flatten() for tensor in side]) for side in (found, expected))
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def assert_equivalent(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float,
                      moments: float | None = None) -> None:
    """All agree: each measure, each layer's running statistics, memory and dictionary by itself; weights, and moments
    (the first is the gradient's), as a whole, since some gradients are only rounding.
    """
    assert found.keys() == expected.keys()
    parts: dict[str, list[str]] = {}
    for name, value in expected.items():
        kind = name.split("/")[0]
        assert kind in KINDS
        if not value.is_floating_point():  # classes in the memory, steps that BatchNorm counts
            assert torch.equal(found[name], value), name
        elif kind == "buffer":  # a mean may be zero but for rounding: it counts beside its layer's variance
            parts.setdefault(name.rpartition(".running_")[0] or name, []).append(name)
        else:
            parts.setdefault(kind if kind in ("exp_avg", "exp_avg_sq", "weight") else name, []).append(name)
    for part, names in parts.items():
        error = distance([found[name] for name in names], [expected[name] for name in names])
        assert error < (moments or tolerance if part in ("exp_avg", "exp_avg_sq") else tolerance), (part, error)


@pytest.mark.parametrize("case", each(
    *(f"spikes-world2-zero{stage}" for stage in range(4)), "spikes-world3-zero2", "dictionary-world2-zero2",
    "dictionary-world2-zero3", "dictionary-world3-zero2", "dictionary-world3-zero3",
    "frozen-world2-zero2", "frozen-world2-zero3", "spikes-checkpointing-world2-zero3", "spikes-bf16-world2-zero3"))
def test_the_first_step_is_the_same_on_any_cluster(results, case):
    """Losses, gradient, weights, running statistics, memory and dictionary; three ranks pad four atoms to six."""
    task = case.split("-world")[0].removesuffix("-checkpointing")
    single = f"{task}-world1-zero{0 if task in ('spikes', 'frozen') else 2}"
    assert_equivalent(results(case)["first"], results(single)["first"], 1e-5)


@pytest.mark.parametrize("case", each("world1-zero0", *(f"world2-zero{stage}" for stage in range(4)), "world3-zero2"))
def test_twenty_steps_are_those_of_plain_pytorch_on_any_cluster(folder, results, case):
    """In float64, at a learning rate of 1e-3, without DeepSpeed: the order of summation is all that differs."""
    expected = torch.load(folder / "plain.pt", weights_only=True)
    found = results(f"dictionary-fp64-{case}")["last"]
    assert all(value.dtype == torch.float64 for value in found.values() if value.is_floating_point())
    assert_equivalent(found, expected, 1e-9)


@pytest.mark.parametrize(("case", "single"), [
    ("frozen-world2-zero2", "frozen-world1-zero0"), ("spikes-world2-zero2", "spikes-world1-zero0"),
    ("dictionary-world2-zero3", "dictionary-world1-zero2"), ("dictionary-world3-zero2", "dictionary-world1-zero2"),
    ("spikes-checkpointing-world2-zero3", "spikes-checkpointing-world1-zero0")])
def test_later_steps_stay_together(results, case, single):
    """Twenty steps in float32 where a flipped spike is no rounding error any more."""
    assert_equivalent(results(case)["last"], results(single)["last"], 1e-2)


@pytest.mark.full
def test_a_fast_backbone_feels_flipped_spikes_in_its_gradients_alone(results):
    """Beyond a warm-up's rates weights that differ by 1e-5 flip 0.4 % of the spikes, and so turn the gradient."""
    assert_equivalent(results("spikes-fast-world2-zero2")["last"], results("spikes-fast-world1-zero0")["last"],
                      1e-2, moments=0.1)


def test_activation_checkpointing_changes_no_bit(results):
    """Nothing is counted twice: gradients, running statistics and firing rates of the first step are equal."""
    plain, recomputed = results("spikes-world1-zero0")["first"], results("spikes-checkpointing-world1-zero0")["first"]
    assert plain.keys() == recomputed.keys()
    assert [name for name in plain if not torch.equal(plain[name], recomputed[name])] == []


@pytest.mark.parametrize("case", each("spikes-world2-zero0", "dictionary-world1-zero2", "dictionary-world2-zero2",
                                      "dictionary-world2-zero3", "frozen-world2-zero2", "frozen-world2-zero3"))
def test_a_resumed_run_is_the_same_to_the_last_bit(results, case):
    """Loss, gradient norm, weights, AdamW's moments, statistics, memory and dictionary."""
    assert results(case)["resumed"] == []


@pytest.mark.parametrize("case", ["spikes-world2-zero3", "spikes-world3-zero2"])
def test_held_out_metrics_are_the_same_on_any_cluster(results, case):
    """Shares of four and three, batches of three: under ZeRO-3 a rank that ran less would keep the others waiting."""
    single, found = results("spikes-world1-zero0")["metrics"], results(case)["metrics"]
    shared = [name for name in single if not name.startswith(("retrieval_reranked", "held_out_firing_rate"))
              and name != "mlm/accuracy_wrong_image"]  # the wrong image is one of the rank's own
    assert {"retrieval/i2t_r5", "itm/accuracy_hard", "mlm/accuracy_right_image", "mvm/explained"} <= set(shared)
    for name in shared:
        assert found[name] == pytest.approx(single[name], rel=1e-5), name


def contrast_by_hand(atom: dict[str, Tensor], memory: list[tuple[Tensor, Tensor, int, int]]) -> tuple[float, int]:
    """ITC of one atom with one caption an image, pair by pair; and how many remembered pictures were left out."""
    losses, repeated = [], 0
    pairs = [(atom["image"][i], atom["text"][i], int(atom["image_class"][i]), int(atom["caption_class"][i, 0]))
             for i in range(len(atom["image"])) if atom["weight"][i] > 0]
    for image, text, picture, words in pairs:
        others = [other for other in pairs + memory if other[2] != picture and other[3] != words]
        repeated += sum(other[2] == picture for other in memory)
        for anchor, side, positive in ((image, 1, text), (text, 0, image)):
            logits = torch.stack([anchor @ positive] + [anchor @ other[side] for other in others]).double()
            losses.append(float(-(logits / float(atom["temperature"])).log_softmax(0)[0]))
    return sum(losses) / len(losses), repeated


def test_the_memory_holds_the_newest_pairs_in_position_order_and_masks_duplicates(results):
    """Step 5 by hand, from what earlier steps contrasted; an epoch is three steps, so pictures come again."""
    found = results("dictionary-world1-zero2")
    atoms = found["contrasts"][:20]  # four a step
    past = [(atom["image"][i], atom["text"][i], int(atom["image_class"][i]), int(atom["caption_class"][i, 0]))
            for atom in atoms for i in range(len(atom["image"])) if atom["weight"][i] > 0]
    assert found["last"]["buffer/itc.memory_image_class"].tolist() == [pair[2] for pair in past[-60:]]
    assert torch.equal(found["last"]["buffer/itc.memory_image"], torch.stack([pair[0] for pair in past[-60:]]))
    assert torch.equal(found["last"]["buffer/itc.memory_text"], torch.stack([pair[1] for pair in past[-60:]]))

    before = past[:-sum(int((atom["weight"] > 0).sum()) for atom in atoms[16:])][-60:]
    by_hand = [contrast_by_hand(atom, before) for atom in atoms[16:]]
    assert sum(repeated for _, repeated in by_hand) > 0
    assert float(found["last"]["loss/itc"]) == pytest.approx(sum(loss for loss, _ in by_hand) / 4, rel=1e-5)


def test_gathering_contrasts_over_all_ranks(folder, results):
    """Two ranks with an atom each have the loss and the gradient of both atoms in one batch."""
    joint = torch.load(folder / "joint.pt", weights_only=True)
    found = results("gather-world2-zero2")["first"]
    assert distance([found["loss"]], [joint["loss"]]) < 1e-6
    names = [name.removeprefix("gradient/") for name in joint if name.startswith("gradient/")]
    assert len(names) > 50
    gradients = [found[f"exp_avg/{name}"] / (1 - 0.9) for name in names]  # AdamW's first moment after one step
    assert distance(gradients, [joint[f"gradient/{name}"] for name in names]) < 1e-5


def test_the_export_is_the_same_from_any_cluster(folder, results):
    """Whole shapes under ZeRO-3, the trained weights, running statistics of the real atoms alone."""
    files = {case: load_file(folder / case / "export" / "model.safetensors")
             for case in ("dictionary-world1-zero2", "dictionary-world2-zero3", "dictionary-world3-zero2")}
    single = files["dictionary-world1-zero2"]
    for case, weights in files.items():
        assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in single.items()}
        assert distance(list(weights.values()), [single[name] for name in weights]) < 1e-4
        statistics = [name for name in weights if "running" in name]
        assert len(statistics) > 20
        for name in statistics:
            assert distance([weights[name]], [single[name]]) < 1e-2, (case, name)
        trained = {name.removeprefix("weight/"): value for name, value in results(case)["last"].items()
                   if name.startswith("weight/")}
        assert all(torch.equal(weights[name], value) for name, value in trained.items())


@pytest.mark.parametrize("case", each("spikes-bf16-world1-zero2", "spikes-bf16-world2-zero3"))
def test_bf16_trains(results, case):
    """The loss of one step's atoms falls when they come again and again."""
    found = results(case)
    assert float(found["last"]["loss"]) < 0.75 * float(found["first"]["loss"])
    assert all(value.dtype == torch.float32 for name, value in found["last"].items() if name.startswith("weight/"))
