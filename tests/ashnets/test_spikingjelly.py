"""What a user of SpikingJelly expects of an ASH-Net: neurons and surrogates as switches, monitors, no reset."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spikingjelly.activation_based import functional, monitor
from torch import Tensor

from ashnets.config import AbstractConfig, BackboneConfig, FusionConfig, ModelConfig, TextConfig
from ashnets.encoders.spiking import SpikingLayer
from ashnets.model import ASHNet

T = 3
TINY = ModelConfig(width=32, backbone=BackboneConfig(name="resnet18", stem="small", image_size=32, strides=(16,)),
                   abstract=AbstractConfig(time_steps=T, channels=(8,), tdbn_alpha=2.0),
                   text=TextConfig(layers=1, width=32, heads=4, vocab_size=60), fusion=FusionConfig(layers=1, heads=4))
LAYERS = ["abstract.blocks.0.neurons1", "abstract.blocks.0.neurons2"]


def network(**abstract: object) -> ASHNet:
    torch.manual_seed(0)
    return ASHNet(replace(TINY, abstract=replace(TINY.abstract, **abstract)))


def pixels() -> Tensor:
    return torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def loss_of(model: ASHNet) -> Tensor:
    tokens = model.encode_image(pixels(), 4).tokens
    return (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))).sum()


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid", "triangle"])
@pytest.mark.parametrize("neuron", ["lif", "plif", "if"])
def test_every_neuron_and_surrogate_trains(neuron: str, surrogate: str) -> None:
    model = network(neuron=neuron, surrogate=surrogate).train()
    optimizer = torch.optim.SGD(model.abstract.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in model.abstract.named_parameters()}
    loss_of(model).backward()
    for name, parameter in model.abstract.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    optimizer.step()
    moved = {name for name, value in model.abstract.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before)
    taus = [name for name in moved if name.endswith("reciprocal_tau")]
    assert len(taus) == (2 if neuron == "plif" else 0)


def test_switches_change_what_they_say() -> None:
    """Neurons fire differently; surrogates fire alike and learn differently."""
    rates, gradients = {}, {}
    for neuron in ("lif", "plif", "if"):
        rates[neuron] = network(neuron=neuron).train().encode_image(pixels(), 4).rate
    assert torch.equal(rates["lif"], rates["plif"]) and not torch.equal(rates["lif"], rates["if"])
    for surrogate in ("atan", "sigmoid", "triangle"):
        model = network(surrogate=surrogate).train()
        loss = loss_of(model)
        loss.backward()
        gradients[surrogate] = (loss.item(), model.abstract.blocks[0].conv1.weight.grad)
    losses = {value for value, _ in gradients.values()}
    assert len(losses) == 1
    assert not torch.allclose(gradients["atan"][1], gradients["sigmoid"][1])
    assert not torch.allclose(gradients["atan"][1], gradients["triangle"][1])


def test_its_monitors_attach() -> None:
    model = network().train()
    with (monitor.OutputMonitor(model, SpikingLayer) as spikes,
          monitor.InputMonitor(model, SpikingLayer) as currents,
          monitor.AttributeMonitor("rate", False, model, SpikingLayer) as rates,
          monitor.GradOutputMonitor(model, SpikingLayer) as gradients):
        loss_of(model).backward()
    assert spikes.monitored_layers == currents.monitored_layers == gradients.monitored_layers == LAYERS
    for layer in LAYERS:
        fired = spikes[layer][0]
        assert fired.shape == (T, 8, 8 if layer == LAYERS[0] else 32, 2, 2) and set(fired.unique().tolist()) <= {0, 1}
        torch.testing.assert_close(fired.mean(), model.firing_rates()[layer])
        torch.testing.assert_close(rates[layer][0], fired.mean(dim=(0, 1, 3, 4)))
        assert currents[layer][0][0].shape == gradients[layer][0].shape == fired.shape
        assert gradients[layer][0].isfinite().all() and gradients[layer][0].any()
    seen = len(spikes.records)
    model.encode_image(pixels())
    assert len(spikes.records) == seen  # nothing is left hooked


@pytest.mark.parametrize(("carry", "neuron"), [("reset", "lif"), ("detach", "plif"), ("bptt", "if")])
def test_nobody_resets_anything(carry: str, neuron: str) -> None:
    model = network(carry=carry, neuron=neuron).eval()
    with torch.no_grad():
        first, second = model.encode_image(pixels(), 4).rate, model.encode_image(pixels(), 4).rate
        functional.reset_net(model)
        after = model.encode_image(pixels(), 4).rate
    assert torch.equal(first, second) and torch.equal(first, after) and 0 < first.mean() < 1
