"""`train.precision=auto`: settled once by the machine, kept by the run, and a warning where a wish is slow."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import precision
from pipelines.config import PretrainConfig, TrainConfig
from pipelines.errors import UserError
from pipelines.resume import check_resumable, save_config
from pipelines.training import machine
from pipelines.training.engine import deepspeed_config
from pipelines.training.lease import Lease
from tests.pipelines.training.small_checkpoints import make_checkpoint

AUTO = PretrainConfig()


def asking(wanted: str) -> PretrainConfig:
    return replace(AUTO, train=TrainConfig(precision=wanted))  # type: ignore[arg-type]


@pytest.mark.parametrize(("abilities", "chosen"), [
    ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
    ({"avx512_f": True, "avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"),
    ({"neon": True, "bf16": True}, "bf16"), ({"neon": True, "bf16": False}, "fp32"), ({}, "fp32")])
def test_a_cpu_computes_in_bf16_where_it_has_instructions_for_it(abilities, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert precision.settled(AUTO, "cpu").train.precision == chosen
    assert precision.settled(AUTO, "cuda").train.precision == "bf16"
    for wanted in ("fp32", "bf16"):
        assert precision.settled(asking(wanted), "cpu").train.precision == wanted


def test_a_run_keeps_what_it_began_with(tmp_path: Path):
    assert precision.recorded(AUTO, tmp_path) == AUTO  # no run yet
    for began, other in (("fp32", "bf16"), ("bf16", "fp32")):
        (run := tmp_path / began).mkdir()
        save_config(asking(began), run)
        with Lease(run) as lease:
            make_checkpoint(run, lease.attempt, 1)
        check_resumable(precision.recorded(AUTO, run), run)
        assert precision.recorded(AUTO, run).train.precision == began
        with pytest.raises(UserError, match=f"train.precision: '{began}' -> '{other}'"):
            check_resumable(precision.recorded(asking(other), run), run)


def test_slow_bf16_is_told_with_its_mend():
    slow = machine.precision(asking("bf16"), cpu=True, native=False)
    assert "many times as long" in slow.finding and "auto" in slow.mend
    for found, said in ((machine.precision(asking("bf16"), cpu=False, native=False), "bf16"),
                        (machine.precision(asking("bf16"), cpu=True, native=True), "bf16"),
                        (machine.precision(AUTO, cpu=True, native=False), "fp32"),
                        (machine.precision(AUTO, cpu=True, native=True), "bf16")):
        assert found.finding.startswith(said) and not found.mend


def test_an_engine_takes_no_open_precision():
    with pytest.raises(AssertionError, match="settles"):
        deepspeed_config(AUTO.train, 0, 1, 1)
    assert "torch_autocast" in deepspeed_config(asking("bf16").train, 0, 1, 1)
    assert "torch_autocast" not in deepspeed_config(asking("fp32").train, 0, 1, 1)
