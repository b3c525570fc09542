"""What the data and the models of a space refuse is said before Ray is started, and never becomes a trial."""
from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ashnets.config import TextConfig
from pipelines.config import GroupsConfig
from pipelines.errors import UserError
from pipelines.grouping.build import build_groups
from pipelines.store.table import ImageTextStore
from pipelines.training.data_pin import DataPin, read_pin
from pipelines.tuning import sweep
from pipelines.tuning.planner import Planner
from pipelines.tuning.space import read_space
from tests.e2e.bad_input import rows
from tests.pipelines.tuning.points import sweep_config

LR = {"train.lr": {"choice": [0.1, 0.2]}}
NETWORKS = {"model.backbone.name": {"grid": ["resnet18", "mobilenet_v3_small"]},
            "model.backbone.stem": {"grid": ["small", "standard"]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 training samples, and groups of 3 of them."""
    folder = tmp_path_factory.mktemp("data")
    store = ImageTextStore(folder / "store")
    store.append([rows(24, 8)], "one")
    build_groups(GroupsConfig(size=3, method="random"), TextConfig(), store, 0, folder / "groups-of-3")
    return folder


@pytest.mark.parametrize(("space", "keys", "said"), [
    ({"groups.size": {"choice": [2, 25]}}, [], "24 samples cannot fill one group of groups.size=25"),
    ({"groups.size": {"uniform": [2, 30]}}, [], "24 samples cannot fill one group of groups.size=30"),
    (LR, ["groups.path=FOLDER/groups-of-3", "groups.method=random"], "size=3 (now 4)"),
    (LR, ["init=/nowhere"], "init=/nowhere: /nowhere does not exist; name the folder of a run or of an export"),
    (LR, ["train.data_version=7"], "has versions up to 1: name one of them"),
    ({"model.backbone.name": {"choice": ["resnet18", "resnet19"]}}, [],
     "tune.space.model.backbone.name: no model has the value 'resnet19': model.backbone.name=resnet19 is no"),
])
def test_a_mistake_is_told_before_ray_starts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             space: dict, keys: list[str], said: str) -> None:
    monkeypatch.setattr(sweep, "connect", lambda: pytest.fail("Ray was started"))
    config = sweep_config(space, f"data.store={folder / 'store'}", f"run.storage={tmp_path}",
                          *(key.replace("FOLDER", str(folder)) for key in keys))
    with pytest.raises(UserError) as told:
        sweep.tune(config, tmp_path)
    assert said in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "demo" / "trials.jsonl").exists()


def planner(space_of: dict, folder: Path, *keys: str) -> Planner:
    config = sweep_config(space_of, *keys)
    return Planner(config, read_space(space_of, config.shared(), []), folder)


def test_a_model_that_cannot_be_built_never_becomes_a_trial(folder: Path, tmp_path: Path) -> None:
    """The small stem is for ResNets only: three of the four pairs."""
    plan = planner(NETWORKS, tmp_path, "tune.search=grid", "tune.trials=0", "groups.method=random",
                   f"data.store={folder / 'store'}")
    plan.data = DataPin(str(folder / "store"), 1, "")
    found = []
    while trial := plan.take():
        found.append(tuple(trial.point.values()))
    assert found == [("resnet18", "small"), ("resnet18", "standard"), ("mobilenet_v3_small", "standard")]
    assert plan.models.impossible() == []


@pytest.mark.parametrize(("search", "trials", "said"), [
    ("grid", 1, "the grid holds further points"), ("grid", 2, ""), ("grid", 0, ""),
    ("random", 3, "no more than these 2 points")])
def test_a_sweep_says_whether_points_are_left(folder: Path, tmp_path: Path, search: str, trials: int,
                                              said: str) -> None:
    plan = planner({"train.lr": {"grid": [0.1, 0.2]}}, tmp_path, f"tune.search={search}", f"tune.trials={trials}",
                   f"groups.path={folder / 'groups-of-3'}")
    plan.data = DataPin(str(folder / "store"), 1, "")
    while plan.take():
        pass
    assert said in plan.rest() and bool(said) == bool(plan.rest())


def test_a_trial_is_bound_to_the_sweeps_version_of_the_data(folder: Path, tmp_path: Path) -> None:
    """Its YAML, with which it goes on, too; an address stays one."""
    plan = planner(LR, tmp_path, f"groups.path={folder / 'groups-of-3'}", "data.store=s3://bucket/store", "init=demo")
    plan.data = DataPin("s3://bucket/store", 5, "")
    assert plan.take() is not None
    assert read_pin(tmp_path / "trials" / "trial-0000") == DataPin("s3://bucket/store", 5, str(folder / "groups-of-3"))
    written = yaml.safe_load((tmp_path / "trials" / "trial-0000.yaml").read_text())
    assert (written["train"]["data_version"], written["data"]["store"]) == (5, "s3://bucket/store")
    assert written["init"] == str(tmp_path / "init")
