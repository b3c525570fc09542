"""Ingests from object storage into object storage: what a local ingest of the same files makes, row for row."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.sources.config import IngestConfig, SourceConfig
from pipelines.sources.importing import ImportReport, import_data
from pipelines.sources.task_table import read_task_table
from pipelines.store.inspection import inspect, told
from pipelines.store.quarantine import read_quarantine
from pipelines.store.table import ImageTextStore
from tests import s3_server
from tests.pipelines.sources import layouts

Both = Callable[..., tuple[ImportReport, ImportReport]]


@pytest.fixture
def both(ray_local: ModuleType, bucket: str, tmp_path: Path) -> Both:
    """Ingest <tmp_path>/data, and the same files from the bucket into the bucket; the keys' values are names in it."""
    (tmp_path / "data").mkdir()

    def run(format: Any, max_bad_share: float = 0.0, split: str = "", **places: str
            ) -> tuple[ImportReport, ImportReport]:
        def once(root: str) -> ImportReport:
            named = {key: f"{root}/data/{name}".rstrip("/") for key, name in places.items()}
            return import_data(IngestConfig(SourceConfig(format=format, split=split, **named),  # type: ignore[arg-type]
                                            DataConfig(store=f"{root}/store", max_bad_share=max_bad_share)))
        s3_server.upload(tmp_path / "data", f"{bucket}/data")
        return once(str(tmp_path)), once(bucket)
    return run


def rows(place: str | Path) -> list[dict[str, Any]]:
    return sorted((row for batch in ImageTextStore(place).iter_batches() for row in batch.to_pylist()),
                  key=lambda row: str(row["sample_id"]))


def test_coco_with_bad_records_is_what_a_local_ingest_makes(both: Both, bucket: str, tmp_path: Path) -> None:
    truth = layouts.coco(tmp_path / "data", layouts.pictures(600))
    file, folder = "annotations/captions_train2014.json", tmp_path / "data" / "train2014"
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes(b"")
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:-100])
    content = json.loads((tmp_path / "data" / file).read_text())
    content["images"][3]["file_name"] = "../annotations/captions_train2014.json"
    (tmp_path / "data" / file).write_text(json.dumps(content))

    here, there = both("coco", 0.01, path=file, images="train2014")
    reasons = {"missing file": 1, "empty file": 1, "truncated": 1, "unsafe name": 1}
    assert here.added == there.added == 596 and here.quarantined == there.quarantined == reasons
    stored = rows(f"{bucket}/store")
    assert stored == rows(tmp_path / "store") and len(stored) == 596  # the batch's id too: another place, the same data
    assert all((row["image"], tuple(row["captions"]), row["split"]) == truth[row["sample_id"]] for row in stored)
    assert read_quarantine(f"{bucket}/store").equals(read_quarantine(tmp_path / "store"))
    assert there.quarantine.startswith(f"{bucket}/store.quarantine/coco-") and there.missing == ["coco/1"]

    again = both("coco", 0.01, path=file, images="train2014")[1]
    assert again.was_there and again.added == 0 and rows(f"{bucket}/store") == stored

    shown = [[line for line in told(inspect(place, 4))[1:] if " UTC " not in line]
             for place in (tmp_path / "store", f"{bucket}/store")]
    assert shown[0] == shown[1] and any("1 unsafe name (such as coco/4;" in line for line in shown[1])


def test_too_many_bad_records_append_nothing(both: Both, bucket: str, tmp_path: Path) -> None:
    layouts.coco(tmp_path / "data", layouts.pictures(4))
    next((tmp_path / "data" / "train2014").iterdir()).unlink()
    with pytest.raises(UserError, match="1 of 4 records are bad"):
        both("coco", path="annotations/captions_train2014.json", images="train2014")
    s3_server.upload(tmp_path / "data", f"{bucket}/data")
    data = DataConfig(store=f"{bucket}/store", max_bad_share=0)
    source = SourceConfig(format="coco", path=f"{bucket}/data/annotations/captions_train2014.json",
                          images=f"{bucket}/data/train2014")
    with pytest.raises(UserError, match=f"nothing was appended to {bucket}/store.*{bucket}/store.quarantine/coco-"):
        import_data(IngestConfig(source, data))
    assert not ImageTextStore(f"{bucket}/store").exists()
    assert not list(ImageTextStore(f"{bucket}/store").path.glob("*.parquet"))


@pytest.mark.full
@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_img2dataset(form: str, both: Both, bucket: str, tmp_path: Path) -> None:
    make = layouts.img2dataset_tars if form == "tars" else layouts.img2dataset_parquet
    make(tmp_path / "data", layouts.pictures(12))
    here, there = both("img2dataset", split="train", path="")
    assert here.added == there.added > 0 and here.dropped == there.dropped
    assert rows(f"{bucket}/store") == rows(tmp_path / "store")


def test_a_task_table(both: Both, bucket: str, tmp_path: Path) -> None:
    layouts.nlvr2(tmp_path / "data", layouts.pictures(12))
    file = next(path for path in (tmp_path / "data").rglob("*.json"))
    here, there = both("nlvr2", path=str(file.relative_to(tmp_path / "data")), images="images")
    assert here.added == there.added > 0 and here.rows == there.rows
    tables = [pa.Table.from_batches(read_task_table(place)) for place in (tmp_path / "store", f"{bucket}/store")]
    assert tables[0].equals(tables[1])
    assert both("nlvr2", path=str(file.relative_to(tmp_path / "data")), images="images")[1].was_there


class Label(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.binary(), "tests.object_storage.label")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Label:
        return cls()


def test_the_gate_refuses_there_what_it_refuses_here(ray_local: ModuleType, bucket: str, tmp_path: Path) -> None:
    image = pa.ExtensionArray.from_storage(Label(), pa.array([b"x"], pa.binary()))
    pq.write_table(pa.table({"image": image, "caption": ["words"]}), tmp_path / "hidden.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "hidden.parquet").read_bytes()[:-20])
    for name, said in (("hidden", "column 'image' has the extension type .*, which may hide code"),
                       ("cut", "is not a readable Parquet file")):
        place = f"{bucket}/{name}.parquet"
        s3_server.put(place, (tmp_path / f"{name}.parquet").read_bytes())
        source = SourceConfig(format="parquet", path=place, split="train")
        with pytest.raises(ValueError, match=f"{place}.* {said}"):
            import_data(IngestConfig(source, DataConfig(store=f"{bucket}/store")))
    assert not ImageTextStore(f"{bucket}/store").exists()
