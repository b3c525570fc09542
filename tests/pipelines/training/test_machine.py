"""Each check of the machine: what it takes as enough, what not, and the mend that it names."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.paths import REPOSITORY
from pipelines.config import CheckpointConfig, FeedConfig, PretrainConfig, ScalingConfig
from pipelines.disk import free_bytes
from pipelines.errors import UserError
from pipelines.finding import Finding, demand
from pipelines.training import machine, preflight
from pipelines.training.needs import ModelSize, checkpoint_bytes, feed_bytes, worker_bytes

CONFIG = PretrainConfig(scaling=ScalingConfig(workers=4, cpus_per_worker=0.5))
SIZE = ModelSize(parameters=10_000_000, trainable=4_000_000)
MIB, GIB = 2**20, 2**30

PYPROJECT = """
[project]
requires-python = ">=3.11"
dependencies = ["torch>=2.11,<2.12", "ray[data]==2.60.0"]
[project.optional-dependencies]
demo = ["timm==1.0.31"]
"""


@pytest.fixture
def pyproject(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    return tmp_path / "pyproject.toml"


def test_the_interpreter(pyproject: Path) -> None:
    assert machine.python(pyproject, "3.12.1").ok
    assert not machine.python(pyproject, "3.10.9").ok


@pytest.mark.parametrize(("installed", "extras", "said"), [
    ({"torch": "2.11.0", "ray": "2.60.0"}, (), None),
    ({"torch": "2.11.0+cu130", "ray": "2.60.0"}, (), None),
    ({"torch": "2.12.0", "ray": "2.60.0"}, (), "torch is 2.12.0, not <2.12,>=2.11"),
    ({"torch": "2.11.1"}, (), "ray is missing"),
    ({"torch": "2.11.0", "ray": "2.60.0"}, ("demo",), "timm is missing")])
def test_packages(pyproject: Path, installed: dict[str, str], extras: tuple[str, ...], said: str | None) -> None:
    found = machine.packages(pyproject, extras, installed.get)
    assert found.ok is (said is None) and (said or "all") in found.finding


def test_this_environment_is_as_pyproject_asks() -> None:
    assert machine.packages(REPOSITORY / "pyproject.toml", ("demo", "dev")).ok
    assert machine.python(REPOSITORY / "pyproject.toml").ok


def test_the_op_or_a_compiler() -> None:
    assert machine.communication_op(True, None, cpu=True).ok and machine.communication_op(False, None, cpu=False).ok
    assert machine.communication_op(False, "/usr/bin/c++", cpu=True).mend == (
        "python -m cluster.comm_op builds it now (a minute)")
    assert "g++" in machine.communication_op(False, None, cpu=True).mend


@pytest.mark.parametrize(("total", "ok"), [(3.0, True), (2.9, False)])
def test_one_cpu_is_left_for_the_feed(total: float, ok: bool) -> None:
    assert machine.cpus(CONFIG, total).ok is ok


@pytest.mark.parametrize(("workers", "total", "ok"), [
    ((1, 2), 2.0, True),  # both, and one CPU is left
    ((1, 4), 3.0, True),
    ((1, 4), 2.0, False),  # Ray would start all four, on all CPUs
    ((4, 8), 1.5, False)])
def test_elastic_workers_leave_a_cpu_however_many_fit(workers: tuple[int, int], total: float, ok: bool) -> None:
    assert machine.cpus(replace(CONFIG, scaling=ScalingConfig(workers=workers)), total).ok is ok


def test_elastic_workers_train_on_the_gpus_that_are_there() -> None:
    elastic = replace(CONFIG, scaling=ScalingConfig(workers=(2, 4)))
    assert machine.device(elastic, 3).finding == "cuda: 3 of 3 GPUs"
    assert machine.device(elastic, 1).finding.startswith("cpu")


@pytest.mark.parametrize("workers", [0, 2.5, True, "2", (1,), (2, 1), (0, 2), (1, 2, 3), (1, 2.5), None])
def test_what_is_no_number_of_workers(workers: object) -> None:
    with pytest.raises(ValueError, match="scaling.workers=.* is not allowed"):
        ScalingConfig(workers=workers)


@pytest.mark.parametrize(("wanted", "gpus", "said"), [
    ("auto", 4, "cuda"), ("auto", 3, "cpu"), ("auto", 0, "cpu"), ("cpu", 8, "cpu"), ("gpu", 4, "cuda"),
    ("gpu", 3, None)])
def test_the_device(wanted: str, gpus: int, said: str | None) -> None:
    found = machine.device(replace(CONFIG, scaling=replace(CONFIG.scaling, device=wanted)), gpus)
    assert found.ok is (said is not None) and (said is None or found.finding.startswith(said))


def test_bytes_of_a_checkpoint_are_those_of_a_real_one() -> None:
    """43,855,165 parameters, 6,610,493 of them learn: 153 MB were written, frozen weights mostly left out."""
    size = ModelSize(43_855_165, 6_610_493)
    assert 12 * size.trainable < 152_953_109 < checkpoint_bytes(size) < 2 * 152_953_109


def test_zero_shares_what_a_worker_holds() -> None:
    held = [worker_bytes(replace(CONFIG, scaling=replace(CONFIG.scaling, zero_stage=stage)), SIZE, cpu=True)
            for stage in range(4)]
    saved = [round(a - b) for a, b in zip(held, held[1:], strict=False)]
    # Three quarters of the optimizer and of its copy on the way to the disk, gradients, weights; stage 3 copies none.
    assert saved == [72_000_000, 12_000_000, 30_000_000 + 16_000_000]
    assert worker_bytes(CONFIG, SIZE, cpu=False) < held[3]


def test_memory_disk_and_shared_memory_have_a_limit_each() -> None:
    need = 4 * worker_bytes(CONFIG, SIZE, cpu=True)
    assert machine.memory(CONFIG, SIZE, need, cpu=True).ok and not machine.memory(CONFIG, SIZE, need - 1, cpu=True).ok
    config = replace(CONFIG, checkpoint=CheckpointConfig(keep=3, keep_best=1))
    need = 5 * checkpoint_bytes(SIZE) + 4 * SIZE.parameters
    assert machine.disk(config, SIZE, Path("/runs/a"), need).ok
    assert not machine.disk(config, SIZE, Path("/runs/a"), need - 1).ok
    assert machine.shared_memory(CONFIG, True, 280 * MIB).ok and not machine.shared_memory(CONFIG, True, 64 * MIB).ok
    assert machine.shared_memory(CONFIG, False, 64 * MIB).ok


def test_the_stores_disk_holds_its_images_twice_while_groups_are_built() -> None:
    assert not machine.store_disk(Path("/data/s"), 10 * GIB, grouped=False, free=21 * GIB).ok
    assert machine.store_disk(Path("/data/s"), 10 * GIB, grouped=False, free=23 * GIB).ok
    assert machine.store_disk(Path("/data/s"), 10 * GIB, grouped=True, free=0).ok
    assert machine.store_disk(Path("/data/s"), 0, grouped=False, free=GIB).ok


@pytest.mark.parametrize(("window", "side", "block"), [
    (10, 32, 32),  # a window of 160 groups for 4 workers: two micro-batches of 16
    (1, 32, 16),  # a micro-batch at least
    (500, 32, 128), (500, 2048, 16)])  # 128 groups, or 96 MiB and a micro-batch at least
def test_the_object_store_holds_two_windows_and_three_blocks_a_worker(window: int, side: int, block: int) -> None:
    config = replace(CONFIG, feed=FeedConfig(window=window, image_size=side))
    group = 4 * (3 * side * side + 25 * 4 * 8)
    assert feed_bytes(config, 1000.0) == 2 * window * 16 * 4 * 1000 + 3 * 4 * block * group


def test_a_small_object_store_is_a_finding() -> None:
    config = replace(CONFIG, feed=FeedConfig(window=10, image_size=32))
    assert not machine.object_store(config, 1000.0, MIB).ok and machine.object_store(config, 1000.0, GIB).ok


@pytest.mark.parametrize(("environment", "ok", "advice"), [
    ({}, True, ""),
    ({"RAY_ADDRESS": "head:6379"}, True, "RAY_AUTH_MODE=token on all nodes"),
    ({"RAY_ADDRESS": "head:6379", "RAY_AUTH_MODE": "disabled"}, True, "RAY_AUTH_MODE=token on all nodes"),
    ({"RAY_ADDRESS": "head:6379", "RAY_AUTH_MODE": "token"}, False, "ray get-auth-token"),
    ({"RAY_ADDRESS": "head:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, True, "")])
def test_an_address_and_its_token(environment: dict[str, str], ok: bool, advice: str, tmp_path: Path) -> None:
    found = machine.ray_address(environment, tmp_path)
    assert found.ok is ok and advice in found.mend and bool(advice) is bool(found.mend)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    found = machine.ray_address(environment, tmp_path)
    assert found.ok and "secret" not in found.finding + found.mend


def test_an_address_that_does_not_answer_is_not_waited_for() -> None:
    found = preflight.ray({"RAY_ADDRESS": "127.0.0.1:9"})
    assert not found.ok and "RAY_ADDRESS=127.0.0.1:9 does not answer" in found.finding


def test_storage_that_a_node_does_not_see_is_named_with_the_node() -> None:
    found = machine.visible({"b": ["/runs"], "a": ["/runs", "/data"]}, 3)
    assert not found.ok and "a does not see /runs, /data; b does not see /runs" in found.finding
    assert machine.visible({}, 3).ok


def test_every_fault_is_demanded_in_one_line_each() -> None:
    fine = Finding("a", True, "fine", "advice")
    demand(fine)
    with pytest.raises(UserError, match="^b is wrong: mend b\nc is wrong$"):
        demand(fine, Finding("b", False, "b is wrong", "mend b"), Finding("c", False, "c is wrong"))


def test_free_space_of_a_folder_that_will_be_made(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.01)
