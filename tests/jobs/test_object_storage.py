"""The jobs on addresses, as a user runs them; and what he gets wrong with them, in one line each."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.grouping.materialise import GroupedStore
from pipelines.store.table import ImageTextStore
from tests import s3_server
from tests.pipelines.sources import layouts

REPOSITORY = Path(__file__).resolve().parents[2]


def run(job: str, *words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in (os.environ | environment).items() if value and not name.startswith("RAY_")}
    return subprocess.run([sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *words], capture_output=True,
                          text=True, cwd=folder, env=known, timeout=200)


@pytest.mark.full
def test_ingest_inspect_and_group(bucket: str, tmp_path: Path) -> None:
    layouts.coco(tmp_path / "data", layouts.pictures(30))
    s3_server.upload(tmp_path / "data", f"{bucket}/coco")
    words = ("--config", str(REPOSITORY / "jobs/configs/ingest/coco.yaml"), f"data.store={bucket}/store",
             f"source.path={bucket}/coco/annotations/captions_train2014.json", f"source.images={bucket}/coco/train2014")
    done = run("ingest", *words, folder=tmp_path)
    assert done.returncode == 0 and f"{bucket}/store: added 30 rows" in done.stdout, done.stderr
    # Keys that cannot write: the same data are there, other data are refused, and nothing is appended.
    done = run("ingest", *words, folder=tmp_path, **s3_server.READER)
    assert done.returncode == 0 and f"{bucket}/store: was there already" in done.stdout, done.stderr
    done = run("ingest", *words, "source.name=other", folder=tmp_path, **s3_server.READER)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"error: {bucket}/store/other-" in done.stderr
    assert ".parquet: access is denied: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be keys that" in done.stderr
    assert ImageTextStore(f"{bucket}/store").count() == 30

    done = run("inspect", f"data.store={bucket}/store", folder=tmp_path, **s3_server.READER)
    assert done.returncode == 0 and f"{bucket}/store: version 1, 30 images" in done.stdout, done.stderr
    assert (tmp_path / "store.inspection" / "store.html").stat().st_size > 10_000

    grouping = (f"data.store={bucket}/store", "groups.method=random")
    done = run("group", *grouping, "groups.path=groups", folder=tmp_path, **s3_server.READER)
    assert done.returncode == 0, done.stderr
    built = GroupedStore.open(tmp_path / "groups")
    assert built.groups == 8 and built.manifest["store"] == f"{bucket}/store"
    for words, said in ((grouping, "groups.path is missing: "), ((*grouping, f"groups.path={bucket}/groups"),
                                                                "is an address: groups lie in a folder")):
        done = run("group", *words, folder=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


NO_BUCKET = ("s3://nowhere/store", {}, "s3://nowhere: there is no such bucket: create it, or name another")
NO_STORE = ("s3://bucket/nothing", {}, "data.store=s3://bucket/nothing: ")
NO_FOLDER = ("s3://bucket", {}, "s3://bucket: this address cannot hold a store: write s3://bucket/folder")
WRONG_KEYS = ("s3://bucket/nothing", {"AWS_SECRET_ACCESS_KEY": "another"},
              "s3://bucket: access is denied: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be keys that may use it")
NO_KEYS = ("s3://bucket/nothing", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
           "s3://bucket: access is denied: AWS_ACCESS_KEY_ID is not set: set it and AWS_SECRET_ACCESS_KEY")
NO_ENDPOINT = ("s3://bucket/nothing", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
               "s3://bucket: AWS_ENDPOINT_URL=http://127.0.0.1:9 does not answer: correct it, or look at the network")


@pytest.mark.parametrize(("job", "mistake"), [
    ("inspect", NO_BUCKET), ("inspect", NO_STORE), ("inspect", NO_FOLDER), ("inspect", WRONG_KEYS),
    ("inspect", NO_KEYS), ("inspect", NO_ENDPOINT), ("group", NO_BUCKET), ("group", NO_STORE), ("ingest", NO_BUCKET),
    ("ingest", NO_KEYS), ("ingest", NO_ENDPOINT)])
def test_a_mistake_is_one_line(job: str, mistake: tuple[str, dict[str, str], str], s3: str, tmp_path: Path) -> None:
    place, environment, message = mistake
    (tmp_path / "pictures").mkdir()
    source = [f"source.path={tmp_path / 'pictures'}"] if job == "ingest" else []
    done = run(job, f"data.store={place}", *source, folder=tmp_path, **environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


def test_a_source_that_cannot_be_reached_is_one_line(s3: str, tmp_path: Path) -> None:
    for place, said in (("s3://nowhere/pictures", "s3://nowhere: there is no such bucket"),
                        ("s3://key:secret@bucket/pictures", "keys do not belong into an address"),
                        (f"{s3}/nothing", "source.path=s3://bucket/nothing does not exist: name a folder that does")):
        done = run("ingest", f"source.path={place}", f"data.store={tmp_path / 'store'}", folder=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr
        assert "secret" not in done.stderr
