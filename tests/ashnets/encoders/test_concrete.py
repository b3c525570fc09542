"""The concrete encoder and its sine positions."""
from __future__ import annotations

import math

import torch

from ashnets.encoders.concrete import ConcreteEncoder, sine_positions


def test_sine_positions_are_the_closed_form() -> None:
    height, width, channels = 3, 5, 8
    table = sine_positions(height, width, channels)
    assert table.shape == (15, 8)
    for y in range(height):
        for x in range(width):
            expected = []
            for place, size in ((y, height), (x, width)):
                angles = [2 * math.pi * (place + 1) / size * 10000 ** (-i / 2) for i in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[y * width + x], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_all_places_have_different_positions() -> None:
    table = sine_positions(12, 12, 384)
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1


def test_tokens_are_normalised_latents_in_row_major_order() -> None:
    torch.manual_seed(0)
    encoder = ConcreteEncoder(3, 8).train()
    features = torch.randn(4, 3, 2, 5)
    tokens = encoder(features)
    projected = torch.einsum("bchw,dc->bdhw", features, encoder.project.weight[:, :, 0, 0])
    latents = torch.nn.functional.batch_norm(projected, None, None, training=True)
    place = latents[1, :, 1, 3] + sine_positions(2, 5, 8)[1 * 5 + 3]
    expected = (place - place.mean()) / (place.var(unbiased=False) + 1e-5).sqrt()
    assert tokens.shape == (4, 10, 8)
    torch.testing.assert_close(tokens[1, 8], expected, atol=1e-5, rtol=1e-4)


def test_tokens_are_fp32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ConcreteEncoder(3, 8)(torch.randn(2, 3, 2, 2)).dtype == torch.float32
