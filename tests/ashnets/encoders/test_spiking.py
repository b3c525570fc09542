"""The carrying neuron layer, against SpikingJelly's own multi-step neurons."""
from __future__ import annotations

import importlib
import os

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ashnets.config import AbstractConfig
from ashnets.encoders.spiking import SpikingLayer

T, GROUPS, G, SHAPE = 5, 3, 4, (6, 2, 2)


def layer(carry: str, **settings: object) -> SpikingLayer:
    return SpikingLayer(AbstractConfig(carry=carry, **settings))


def currents(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(T, GROUPS * G, *SHAPE, generator=generator) + 0.6).requires_grad_()


def concatenated(x: Tensor) -> Tensor:
    """[T, groups * G, ...] -> [G * T, groups, ...]: the samples of a group one after the other."""
    return torch.cat([x[:, i::G] for i in range(G)])


def grouped(spikes: Tensor) -> Tensor:
    """The inverse of `concatenated`."""
    return torch.stack(spikes.split(T), dim=2).flatten(1, 2)


def spikingjelly_neuron(kind: str, shape: str) -> nn.Module:
    fire = {"atan": surrogate.ATan(2.0), "sigmoid": surrogate.Sigmoid(2.0),
            "triangle": surrogate.PiecewiseQuadratic(2.0)}[shape]
    common = {"v_threshold": 1.0, "v_reset": 0.0, "surrogate_function": fire, "detach_reset": True, "step_mode": "m"}
    if kind == "lif":
        return neuron.LIFNode(tau=2.5, decay_input=True, **common)
    if kind == "plif":
        return neuron.ParametricLIFNode(init_tau=2.5, decay_input=True, **common)
    return neuron.IFNode(**common)


@pytest.mark.parametrize("shape", ["atan", "sigmoid", "triangle"])
@pytest.mark.parametrize("kind", ["lif", "plif", "if"])
def test_bptt_is_one_scan_over_the_concatenated_sequence(kind: str, shape: str) -> None:
    x, y = currents(), currents()
    ours = layer("bptt", neuron=kind, tau=2.5, surrogate=shape)
    node = spikingjelly_neuron(kind, shape)
    weights = torch.randn(T, GROUPS * G, *SHAPE)
    spikes = ours(x, G)
    expected = grouped(node(concatenated(y)))
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-6)
    if kind == "plif":
        torch.testing.assert_close(ours.reciprocal_tau.grad, node.w.grad.view(1), rtol=1e-5, atol=1e-5)


def test_gradient_crosses_samples_under_bptt_and_never_under_detach() -> None:
    for carry, crosses in (("bptt", True), ("detach", False)):
        x = currents()
        spikes = layer(carry)(x, G)
        spikes[:, 2::G].sum().backward()  # the third sample of every group
        assert bool(x.grad[:, 1::G].any()) is crosses
        assert x.grad[:, 2::G].any()
        assert not x.grad[:, 3::G].any()


def test_detach_has_the_forward_of_bptt() -> None:
    x = currents()
    assert torch.equal(layer("detach")(x, G), layer("bptt")(x, G))
    assert not torch.equal(layer("detach")(x, G), layer("reset")(x, G))


def test_reset_equals_each_sample_alone() -> None:
    x = currents()
    together = layer("reset")(x, G)
    for i in range(GROUPS * G):
        node = spikingjelly_neuron("lif", "atan")
        node.tau = 2.0
        assert torch.equal(together[:, i], node(x[:, i:i + 1])[:, 0])


@pytest.mark.parametrize("carry", ["detach", "bptt"])
def test_a_restarted_sample_starts_a_new_sequence(carry: str) -> None:
    x = currents()
    restart = torch.zeros(GROUPS * G, dtype=torch.bool)
    restart[1 * G + 2] = True  # the third sample of the second group
    carried, cut = layer(carry)(x, G), layer(carry)(x, G, restart)
    first, second = x[:, G:G + 2], x[:, G + 2:2 * G]
    expected = torch.cat([layer(carry)(first, 2), layer(carry)(second, 2)], dim=1)
    assert torch.equal(cut[:, G:2 * G], expected)
    assert not torch.equal(cut[:, G:2 * G], carried[:, G:2 * G])
    others = [i for i in range(GROUPS * G) if not G <= i < 2 * G]
    assert torch.equal(cut[:, others], carried[:, others])


def test_a_restart_of_every_sample_is_reset_and_cuts_the_gradient() -> None:
    x, y = currents(), currents()
    spikes = layer("bptt")(x, G, torch.ones(GROUPS * G, dtype=torch.bool))
    expected = layer("reset")(y, G)
    spikes.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(x.grad, y.grad)


def test_no_state_outlives_a_forward() -> None:
    neurons, x = layer("detach"), currents()
    first = neurons(x, G)
    neurons(currents(1) + 3, G)
    assert torch.equal(neurons(x, G), first)
    assert not list(neurons.buffers())


def test_the_membrane_is_fp32_under_autocast() -> None:
    x = currents().detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spikes = layer("detach")(x, G)
    assert spikes.dtype == torch.float32
    assert torch.equal(spikes, layer("detach")(x.float(), G))


def test_recomputation_under_activation_checkpointing_changes_nothing() -> None:
    x, y = currents(), currents()
    neurons = layer("bptt")
    neurons(x, G).square().sum().backward()
    checkpoint(neurons, y, G, use_reentrant=False).square().sum().backward()
    assert torch.equal(x.grad, y.grad)


def test_rate_is_the_mean_of_the_last_spikes_by_channel() -> None:
    neurons = layer("detach")
    spikes = neurons(currents(), G)
    torch.testing.assert_close(neurons.rate, spikes.mean(dim=(0, 1, 3, 4)))
    assert not neurons.rate.requires_grad


@pytest.mark.parametrize(("kernel", "implementation"), [("torch", "torch"), ("triton", "triton"), ("cupy", "cuda")])
@pytest.mark.parametrize("kind", ["lif", "plif", "if"])
def test_a_kernel_is_chosen_by_the_variable_that_spikingjelly_reads(monkeypatch: pytest.MonkeyPatch, kind: str,
                                                                    kernel: str, implementation: str) -> None:
    operators = importlib.import_module("spikingjelly._ops." + {"if": "if_"}.get(kind, kind))
    variable = operators._selection._environment_variable
    monkeypatch.setenv(variable, "auto")
    layer("detach", neuron=kind, kernel=kernel)
    assert os.environ[variable] == implementation
