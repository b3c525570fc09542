"""The four forms of the summary ratio."""
from __future__ import annotations

import pytest
import torch

from ashnets.config import SummaryRatioConfig
from ashnets.encoders.summary_ratio import SummaryRatio

CONCRETE, ABSTRACT = torch.randn(2, 3, 4), torch.randn(2, 3, 4)


@pytest.mark.parametrize(("mode", "shape"), [("learned", (1,)), ("per_channel", (4,)), ("fixed", None)])
def test_a_ratio_scales_the_abstract_part(mode: str, shape: tuple[int, ...] | None) -> None:
    module = SummaryRatio(SummaryRatioConfig(mode=mode, value=0.5), 4)
    torch.testing.assert_close(module(CONCRETE, ABSTRACT), CONCRETE + 0.5 * ABSTRACT)
    assert [p.shape for p in module.parameters()] == ([] if shape is None else [shape])


def test_per_channel_ratios_act_on_their_own_channel() -> None:
    module = SummaryRatio(SummaryRatioConfig(mode="per_channel"), 4)
    with torch.no_grad():
        module.ratio.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    torch.testing.assert_close(module(CONCRETE, ABSTRACT)[..., 2], CONCRETE[..., 2] + 2 * ABSTRACT[..., 2])


def test_the_gate_mixes_both_parts_by_a_softmax_of_each_token() -> None:
    module = SummaryRatio(SummaryRatioConfig(mode="gate"), 4)
    tokens = module(CONCRETE, ABSTRACT)
    token = torch.cat([ABSTRACT[1, 2], CONCRETE[1, 2]])
    abstract, concrete = (module.gate.weight @ token + module.gate.bias).exp()
    share = abstract / (abstract + concrete)
    torch.testing.assert_close(tokens[1, 2], share * ABSTRACT[1, 2] + (1 - share) * CONCRETE[1, 2])
