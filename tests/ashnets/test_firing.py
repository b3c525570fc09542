"""Firing rates, dead and saturated units."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from ashnets.config import AbstractConfig
from ashnets.encoders.spiking import SpikingLayer
from ashnets.firing import firing_rates, watch_firing


def test_rates_and_shares_of_units_over_all_batches() -> None:
    model = nn.Sequential(SpikingLayer(AbstractConfig(tau=2.0)))
    current = torch.zeros(4, 2, 4, 1, 1)  # T B C h w
    current[:, :, 0] = 10.0  # fires always
    current[:, :, 1] = 1.5  # v = .75, 1.125: every other step
    late = current.clone()
    late[:, :, 2] = 10.0  # fires in the second batch only; unit 3 never does
    with watch_firing(model) as record:
        model(current)
        assert firing_rates(model)["0"] == pytest.approx((1 + 0.5) / 4)
        model(late)
        assert firing_rates(model)["0"] == pytest.approx((1 + 0.5 + 1) / 4)
    model(current * 0)  # no longer watched
    firing = record.summary()["0"]
    assert firing.rate == pytest.approx((1 + 0.5 + 0.5) / 4)
    assert (firing.dead, firing.saturated) == (0.25, 0.25)


def test_nothing_watched_is_an_error() -> None:
    with pytest.raises(ValueError, match="no spiking layer ran"), watch_firing(nn.Linear(1, 1)) as record:
        record.summary()
