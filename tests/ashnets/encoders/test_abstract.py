"""The abstract encoder: the constant first convolution, tdBN, windows, checkpointing, independence of neighbours."""
from __future__ import annotations

import copy

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor

from ashnets.config import AbstractConfig
from ashnets.encoders.abstract import AbstractEncoder, SpikingBlock

CHANNELS, WIDTH, B, T = 5, 8, 8, 4


def features(seed: int = 0, batch: int = B) -> Tensor:
    return torch.randn(batch, CHANNELS, 3, 3, generator=torch.Generator().manual_seed(seed))


def encoder(checkpointing: bool = False, **settings: object) -> AbstractEncoder:
    torch.manual_seed(0)
    config = AbstractConfig(**{"time_steps": T, "channels": (6, 7), "tdbn_alpha": 2.0} | settings)
    return AbstractEncoder(CHANNELS, WIDTH, config, checkpointing)


def naive(block: SpikingBlock, x: Tensor, group_size: int) -> Tensor:
    """The block with every layer run at every time step of a repeated input."""
    charge = block.norm1(functional.seq_to_ann_forward(x, block.conv1))
    residual = block.norm2(functional.seq_to_ann_forward(block.neurons1(charge, group_size), block.conv2))
    shortcut = block.shortcut_norm(functional.seq_to_ann_forward(x, block.shortcut))
    return block.neurons2(residual + shortcut, group_size)


def test_the_first_convolution_once_equals_it_at_every_time_step() -> None:
    ours = encoder(channels=(6,)).blocks[0].train()
    theirs = copy.deepcopy(ours)
    x, y = features().requires_grad_(), features().requires_grad_()
    weights = torch.randn(T, B, WIDTH, 3, 3)
    spikes = ours(x.unsqueeze(0), T, 4, None)
    expected = naive(theirs, y.unsqueeze(0).repeat(T, 1, 1, 1, 1), 4)
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    assert 0.02 < expected.mean() < 0.98
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    places = B * 9
    bessel = (places / (places - 1)) / (T * places / (T * places - 1))  # torch stores the unbiased variance
    for name in ("norm1", "shortcut_norm"):
        a, b = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(a.running_mean, b.running_mean)
        torch.testing.assert_close(a.running_var - 0.9, bessel * (b.running_var - 0.9), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.norm2.running_var, theirs.norm2.running_var)


def test_tdbn_starts_at_alpha_times_the_threshold_and_less_where_branches_meet() -> None:
    block = encoder(tdbn_alpha=0.5, v_threshold=1.5).blocks[0]
    assert torch.equal(block.norm1.weight, torch.full((6,), 0.75))
    for norm in (block.norm2, block.shortcut_norm):
        torch.testing.assert_close(norm.weight, torch.full((WIDTH,), 0.75 / 2**0.5))


def test_the_output_is_a_rate_of_every_unit_of_every_token() -> None:
    rate = encoder()(features())
    assert rate.shape == (B, 9, WIDTH)
    assert torch.equal((rate * T).round(), rate * T)  # multiples of 1 / T
    assert 0 <= rate.min() and rate.max() <= 1 and 0.02 < rate.mean() < 0.98


@pytest.mark.parametrize("carry", ["detach", "bptt"])
def test_a_shared_window_gives_each_sample_its_part_of_the_steps(carry: str) -> None:
    shared = encoder(window="shared", carry=carry).eval()
    parts = encoder(time_steps=T // 2, carry=carry).eval()
    x = features()
    assert torch.equal(shared(x, 2), parts(x, 2))
    with pytest.raises(ValueError, match=r"groups.size=3 to divide\s+model.abstract.time_steps=4"):
        shared(features(batch=6), 3)


def test_carrying_reaches_the_next_sample_of_the_group_and_no_earlier_or_other_one() -> None:
    x = features()
    y = x.clone()
    y[1] = features(7)[1]  # the second sample of the first of two groups
    for carry in ("detach", "bptt", "reset"):
        model = encoder(carry=carry).eval()
        changed = (model(x, 4) != model(y, 4)).flatten(1).any(dim=1).tolist()
        assert changed[:3] == [False, True, carry != "reset"]
        assert changed[4:] == [False] * 4


def test_evaluation_from_rest_knows_no_neighbours() -> None:
    model = encoder().eval()
    x = features()
    together = model(x)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x[order]), together[order], rtol=0, atol=0)
    for i in range(B):
        torch.testing.assert_close(model(x[i:i + 1])[0], together[i], rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_activation_checkpointing_gives_equal_gradients_and_moves_statistics_once(momentum: float) -> None:
    plain, frugal = encoder().train(), encoder(checkpointing=True).train()
    restart = torch.arange(B) % 3 == 0
    weights = torch.randn(B, 9, WIDTH)
    for model in (plain, frugal):
        for module in model.modules():
            if hasattr(module, "momentum"):
                module.momentum = momentum
        (model(features(), 4, restart) * weights).sum().backward()
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), frugal.named_buffers(), strict=True):
        torch.testing.assert_close(a, b[1], msg=name)
    assert all(m.momentum == momentum for m in frugal.modules() if hasattr(m, "momentum"))


def test_every_parameter_learns() -> None:
    model = encoder(carry="bptt").train()
    model(features(), 4).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
