"""Places: what can be an address and what cannot, and that keys never stand in one."""
from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config import GroupsConfig, PretrainConfig, RunConfig
from pipelines.errors import UserError
from pipelines.location import Address, fault, folder_of, join, locate, place_of, storage_options
from pipelines.places import groups_folder, run_folder
from pipelines.store.table import ImageTextStore


def test_an_address_is_used_as_a_path_is() -> None:
    for folder in (place_of("s3://bucket/a/store/"), place_of("gs://bucket/a/store")):
        root = str(folder).removesuffix("/a/store")
        assert isinstance(folder, Address) and folder.name == "store" and str(folder.parent) == f"{root}/a"
        assert str(folder.with_name("store.quarantine")) == f"{root}/a/store.quarantine"
        file = folder / "part-1.parquet"
        assert (str(file), file.stem) == (f"{root}/a/store/part-1.parquet", "part-1") and place_of(file) is file
    assert place_of("store") == Path.cwd() / "store" and place_of(Path("/a/store")) == Path("/a/store")


@pytest.mark.parametrize("name", ["s3://bucket", "s3://bucket/", "s3:///store", "s3://bucket/a/../b", "s3://bucket/.x",
                                  "s3://bucket//a", "s3://bucket/50%20", "s3://bucket/a b", "s3://bucket/a?region=x",
                                  "hdfs://host/store", "s3://key:secret@bucket/store"])
def test_what_cannot_hold_a_store_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*: this address cannot hold a store: write s3://bucket/folder[^\n]*$"):
        ImageTextStore(name)


def test_an_address_that_nothing_serves_is_one_line() -> None:
    for place in ("gopher://host/data", "file:///data"):
        with pytest.raises(UserError, match=f"^{place}: this address cannot be used .*s3:// or gs:// is understood$"):
            locate(place)


def test_keys_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="keys do not belong into an address: .*AWS_ACCESS_KEY_ID") as refused:
        locate("s3://key:secret@bucket/data")
    assert "secret" not in str(refused.value)


def test_names_are_joined_to_an_address_as_they_stand() -> None:
    for name in ("a b/é.jpg", "50%20.jpg", "x?y#z.jpg", "+=&.jpg"):
        assert locate(join("s3://bucket/data/", name))[1] == f"bucket/data/{name}"
    assert join("s3://bucket/data?region=eu-west-1", "x.tar") == "s3://bucket/data/x.tar?region=eu-west-1"
    assert join("/data/", "50%20.jpg") == "/data/50%20.jpg"


def test_where_only_a_folder_will_do_an_address_is_one_line(tmp_path: Path) -> None:
    assert folder_of("to", str(tmp_path / "a"), "exports") == tmp_path / "a"
    assert folder_of("to", "a", "exports") == Path.cwd() / "a"
    for key, config in (("run.storage", PretrainConfig(run=RunConfig(storage="s3://bucket/runs"))),
                        ("groups.path", PretrainConfig(groups=GroupsConfig(path="s3://bucket/runs")))):
        with pytest.raises(UserError, match=f"^{key}=s3://bucket/runs is an address: [^\n]* lie in a folder[^\n]*$"):
            run_folder(config, tmp_path), groups_folder(config, tmp_path, 1)
    with pytest.raises(UserError, match="^groups.path is missing: s3://bucket/store is an address"):
        groups_folder(PretrainConfig(), place_of("s3://bucket/store"), 1)


def test_only_an_object_stores_words_count_as_its_answer() -> None:
    """A local error that mentions 403 or a bucket stays what it is."""
    assert fault(OSError("403 Forbidden"), "s3://b/x") is None and fault(ValueError("NoSuchBucket"), "s3://b/x") is None
    told = fault(OSError("When reading key 'x' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject"), "s3://b/x")
    assert told is not None and told.startswith("s3://b/x: access is denied: AWS_ACCESS_KEY_ID")
    told = fault(OSError("google::cloud::Status(UNAUTHENTICATED: no keys)"), "gs://b/x")
    assert told is not None and "GOOGLE_APPLICATION_CREDENTIALS" in told


def test_a_commit_on_s3_is_conditional_and_in_the_buckets_region(s3: str) -> None:
    assert storage_options(place_of(f"{s3}/store")) == {"conditional_put": "etag", "allow_http": "true",
                                                        "region": "us-east-1"}
    assert storage_options(Path("/store")) is None and storage_options(place_of("gs://bucket/store")) is None
