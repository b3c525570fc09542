"""A mistake is one line that names the thing and the mend, exit 2, without a trace and before Ray is started."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ashnets.config import TextConfig
from jobs import cli
from pipelines.config import GroupsConfig, PretrainConfig
from pipelines.grouping.build import build_groups
from pipelines.store.table import ImageTextStore
from tests.e2e.bad_input import TINY, damage_one_image, make_run, make_stores
from tests.e2e.conftest import REPOSITORY, Jobs, lines

# name -> (words of the command, what the line says); STORES and RUNS stand for the folders.
MISTAKES = {
    "missing store": (["data.store=STORES/nowhere"], "/nowhere does not exist: ingest into it"),
    "empty folder": (["data.store=STORES/empty-folder"], "empty-folder is empty: it holds no image-text store"),
    "no rows": (["data.store=STORES/no-rows"], "no-rows is empty: it holds no image-text store"),
    "a column": (["data.store=STORES/column"], "column 'captions' is missing"),
    "a type": (["data.store=STORES/type"], "column 'captions' has type string, expected list<"),
    "a split": (["data.store=STORES/no-val"], "no samples of split 'val' (evaluation.retrieval_split): ingest some"),
    "a version": (["train.data_version=7"], "/good has versions up to 1: name one of them, or leave it out"),
    "unseen": (["evaluation.unseen_split=new"], "no samples of split 'new' (evaluation.unseen_split)"),
    "backbone": (["model.backbone.name=resnet19"], "near it: resnet18"),
    "weights": (["model.backbone.weights=IMAGENET1K_V1", "model.backbone.stem=standard"],
                "resnet18-f37072fd.pth could not be downloaded"),
    "text": (["model.text.init=google-bert/bert-base-uncased"],
             "model.text.init=google-bert/bert-base-uncased: no BERT checkpoint could be read there. Without access"),
    "shared": (["model.abstract.window=shared", "model.abstract.time_steps=6"], "groups.size=4 to divide"),
    "workers": (["scaling.workers=800"], "scaling.workers=800 x scaling.cpus_per_worker=0.5 hold 400 of this"),
    "gpus": (["scaling.device=gpu", "scaling.workers=9", "scaling.cpus_per_worker=0.01"], "lower scaling.workers"),
    "a key": (["model.abstract.time_step=3"], "did you mean model.abstract.time_steps?"),
    "below a file": (["run.storage=STORES/text"], "/text cannot be written (Not a directory): name a writable"),
    "proc": (["run.storage=/proc/runs"], "run.storage=/proc/runs cannot be written"),
    "runs elsewhere": (["run.storage=s3://bucket/runs"],
                       "run.storage=s3://bucket/runs is an address: runs lie in a folder that every node sees"),
    "groups elsewhere": (["groups.path=gs://bucket/groups"],
                         "groups.path=gs://bucket/groups is an address: groups lie in a folder that every node sees"),
    "weights elsewhere": (["init=s3://bucket/model"], "init=s3://bucket/model is an address: models lie in a folder"),
    "groups of 3": (["groups.path=STORES/groups-of-3", "groups.method=random"], "size=3 (now 4)"),
    "mathematics": (["run.name=started", "train.lr=0.5"], "train.lr: 0.001 -> 0.5): use the old values"),
    "edited": (["run.name=edited"], "model.width: 128 -> 64): use the old values, or another run.name"),
    "hidden": (["run.name=edited", "model.width=128"], "model.width: 64 -> 128): use the old values"),
    "broken": (["run.name=broken"], "config.yaml is no configuration of this version"),
    "store changed": (["run.name=pinned"], "trains on the store /another/store"),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all stores."""
    folder = tmp_path_factory.mktemp("stores")
    make_stores(folder)
    return folder


@pytest.fixture(scope="module")
def answers(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the commands answered, all of them run by one process without a network."""
    runs = tmp_path_factory.mktemp("runs")
    common = ["--config", str(TINY), f"data.store={stores / 'good'}", f"run.storage={runs}"]
    config = cli.parse(PretrainConfig, common, description="").config
    for name in ("started", "edited", "broken", "pinned"):
        make_run(config, runs, name)
    edited = runs / "edited" / "config.yaml"
    edited.write_text(edited.read_text().replace("  width: 64\n  embedding", "  width: 128\n  embedding"))
    (runs / "broken" / "config.yaml").write_text("run: {name: [")
    (runs / "pinned" / "data.json").write_text('{"store": "/another/store", "version": 0, "groups": "/x"}')
    commands = {name: common + ["run.name=new"] * all("run.name" not in word for word in words)
                + [word.replace("STORES", str(stores)) for word in words] for name, (words, _) in MISTAKES.items()}
    file = runs / "commands.json"
    file.write_text(json.dumps(commands))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "HOME": str(runs), "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")}
    done = subprocess.run([sys.executable, "-m", "tests.e2e.bad_input", str(file)], cwd=REPOSITORY, text=True,
                          capture_output=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(answers: dict, name: str) -> None:
    code, said = answers["results"][name]
    assert code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
    assert MISTAKES[name][1] in said, said


def test_mistakes_are_found_before_ray_starts(answers: dict) -> None:
    assert answers["ray"] is False


@pytest.mark.full
def test_a_damaged_image_is_replaced_and_counted(jobs: Jobs, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    build_groups(GroupsConfig(method="random", row_group=4), TextConfig(), ImageTextStore(jobs.store), 0, groups)
    damage_one_image(groups)
    damaged = (groups / "groups.json").read_text()
    keys = ["groups.method=random", f"groups.path={groups}", "train.max_steps=3", "evaluation.rerank=0"]
    done = jobs.run("run.name=damaged", *keys)
    assert done.returncode == 0, done.stderr
    summary = json.loads((jobs.storage / "damaged" / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["quarantined"] == {"feed/undecodable": 1}
    assert "1 feed/undecodable" in done.stdout and (groups / "groups.json").read_text() == damaged


@pytest.mark.chaos
def test_losses_that_stay_without_a_finite_value_end_the_launch_at_once(jobs: Jobs) -> None:
    done = jobs.run("run.name=diverged", "train.lr=1e30")
    assert done.returncode == 1
    assert "step 4: the loss is not finite, 3 steps in a row" in done.stderr and "Traceback" not in done.stderr
    folder = jobs.storage / "diverged"
    assert done.stderr.count("\n") == 1 and len(lines(folder / "starts.jsonl")) == 1
    assert [line.get("nonfinite") for line in lines(folder / "metrics.jsonl")] == [None, "loss", "loss", "loss"]
    left = sorted(path.name for path in (folder / "nonfinite").iterdir())
    assert left == [f"step-0000000{step}.json" for step in (2, 3, 4)]
    assert not list((folder / "checkpoints").glob("step-*")), "none is made while a step was not finite"


@pytest.mark.full
def test_too_many_damaged_images_end_the_launch(jobs: Jobs, tmp_path: Path) -> None:
    """One of 94 images is damaged: 11 of the first 1,024 samples."""
    groups = tmp_path / "groups"
    build_groups(GroupsConfig(method="random", row_group=4), TextConfig(), ImageTextStore(jobs.store), 0, groups)
    damage_one_image(groups)
    done = jobs.run("run.name=too-many", "groups.method=random", f"groups.path={groups}", "train.schedule_steps=40",
                    "train.validate_every=0", "feed.max_bad_share=0.005")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: feed: 11 of 1024 samples were bad") and done.stderr.count("\n") == 1
    named = [line for file in (jobs.storage / "too-many" / "bad_samples").glob("rank-*.jsonl") for line in lines(file)]
    assert len(named) == 11 and len({line["sample_id"] for line in named}) == 1
    assert {line["reason"] for line in named} == {"undecodable"}


@pytest.mark.full
def test_a_mistake_that_only_a_worker_can_see_ends_the_launch_at_once(jobs: Jobs, tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    build_groups(GroupsConfig(method="random", row_group=4), TextConfig(), ImageTextStore(jobs.store), 0, groups)
    part = next(groups.glob("part-*.parquet"))
    content = bytearray(part.read_bytes())
    content[200:400] = bytes(200)  # inside the first page, whose checksum no longer fits
    part.write_bytes(content)
    done = jobs.run("run.name=torn", "groups.method=random", f"groups.path={groups}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {part} is damaged") and done.stderr.count("\n") == 1
    assert len(lines(jobs.storage / "torn" / "starts.jsonl")) == 1
