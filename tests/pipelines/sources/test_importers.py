"""Every importer on files in the official layout, through the real ingest: images and captions arrive bit for bit."""
from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from pipelines.errors import UserError
from pipelines.sources.importing import told
from tests.pipelines.sources import layouts
from tests.pipelines.sources.conftest import Ingest
from tests.pipelines.sources.layouts import Truth

Stored = Callable[[], Truth]
Refused = Callable[[], dict[str, str]]


def test_coco_as_pycocotools_reads_it(tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    truth = layouts.coco(tmp_path, layouts.pictures(20), "val2014")
    file = tmp_path / "annotations" / "captions_val2014.json"
    report = ingest(format="coco", path=file, images=tmp_path / "val2014")
    assert stored() == truth and report.rows == {("coco", "val"): 20} and report.added == 20

    independent = COCO(str(file))
    for image in independent.loadImgs(independent.getImgIds()):
        captions = [a["caption"] for a in independent.loadAnns(independent.getAnnIds(imgIds=[image["id"]]))]
        bytes_, found, _ = stored()[f"coco/{image['id']}"]
        assert list(found) == captions
        assert bytes_ == (tmp_path / "val2014" / image["file_name"]).read_bytes()


def test_coco_says_what_does_not_fit(tmp_path: Path, ingest: Ingest, stored: Stored, refused: Refused) -> None:
    truth = layouts.coco(tmp_path, layouts.pictures(8))
    file = tmp_path / "annotations" / "captions_train2014.json"
    content = json.loads(file.read_text())
    (tmp_path / "train2014" / content["images"][0]["file_name"]).unlink()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 2]
    content["annotations"] += [{"image_id": 99, "id": 1, "caption": "nobody"}, {"image_id": "x", "caption": "a"},
                               {"image_id": 3, "id": 2, "caption": None}]
    layouts.write_json(file, content)
    report = ingest(format="coco", path=file, images=tmp_path, max_bad_share=1)
    assert refused() == {"coco/1": "missing file", "coco/2": "empty caption", "coco/99": "unknown image",
                         "coco/annotations[36]": "wrong fields", "coco/annotations[37]": "wrong fields"}
    del truth["coco/1"], truth["coco/2"]
    assert stored() == truth
    assert "WARNING: MISSING IMAGES: 1, such as those of coco/1" in "\n".join(told(report))


def test_coco_needs_a_split_where_the_name_tells_none(tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    layouts.coco(tmp_path, layouts.pictures(4))
    file = (tmp_path / "annotations" / "captions_train2014.json").rename(tmp_path / "mine.json")
    with pytest.raises(UserError, match=r"source.split is missing: .*mine.json"):
        ingest(format="coco", path=file, images=tmp_path / "train2014")
    ingest(format="coco", path=file, images=tmp_path / "train2014", split="val")
    assert {split for _, _, split in stored().values()} == {"val"}


@pytest.mark.parametrize("first", [5, 0])
def test_karpathy_coco(first: int, tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    truth = layouts.karpathy_coco(tmp_path, layouts.pictures(12), captions=first or 7)
    report = ingest(format="karpathy", path=tmp_path / "dataset_coco.json", images=tmp_path, first_captions=first)
    assert stored() == truth
    assert report.rows == {("coco", "train"): 6, ("coco", "val"): 3, ("coco", "test"): 3}


def test_karpathy_splits_can_be_named_anew_and_left_out(tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    layouts.karpathy_coco(tmp_path, layouts.pictures(12))
    report = ingest(format="karpathy", path=tmp_path / "dataset_coco.json", images=tmp_path,
                    splits=("restval=more", "test="))
    assert report.rows == {("coco", "train"): 3, ("coco", "more"): 3, ("coco", "val"): 3}
    assert report.dropped == {"split test is left out by source.splits": 3}
    assert any("left out on purpose: 3" in line for line in told(report))


def test_karpathy_flickr30k(tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    truth = layouts.karpathy_flickr30k(tmp_path, layouts.pictures(9))
    ingest(format="karpathy", path=tmp_path / "dataset_flickr30k.json", images=tmp_path / "flickr30k-images")
    assert stored() == truth


@pytest.mark.parametrize("name", ["results_20130124.token", "results.csv", "flickr_annotations_30k.csv"])
def test_flickr30k_as_published(name: str, tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    truth = layouts.flickr30k(tmp_path, layouts.pictures(6))
    ingest(format="flickr30k", path=tmp_path / name, images=tmp_path / "flickr30k-images", split="train")
    assert stored() == truth


def test_flickr30k_with_the_line_that_lacks_a_bar(tmp_path: Path, ingest: Ingest, stored: Stored,
                                                  refused: Refused) -> None:
    truth = layouts.flickr30k(tmp_path, layouts.pictures(2))
    file = tmp_path / "results.csv"
    file.write_text(file.read_text() + "2.jpg| 4   A dog runs across the grass .\n2.jpg| 5| one | two\n")
    image, captions, split = truth["flickr30k/2"]
    truth["flickr30k/2"] = (image, (*captions, "one | two"), split)
    ingest(format="flickr30k", path=file, images=tmp_path / "flickr30k-images", split="train", max_bad_share=.5)
    assert stored() == truth and refused() == {"flickr30k/line 12": "wrong fields"}


def test_visual_genome_without_what_coco_evaluates_on(tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    found = layouts.pictures(10)
    truth = layouts.visual_genome(tmp_path / "vg", found, coco_ids={1: 501, 2: 502, 3: 503, 4: 504, 5: 505})
    # Of these COCO images 503 is val and 504 is test in Karpathy's splits; 501, 502 are train and restval.
    layouts.karpathy_coco(tmp_path / "coco", layouts.pictures(4, first=501))
    keys = {"format": "vg", "path": tmp_path / "vg/region_descriptions.json", "images": tmp_path / "vg",
            "split": "train", "image_data": tmp_path / "vg/image_data.json"}
    with pytest.raises(UserError, match="source.coco_held_out is missing"):
        ingest(**keys)
    report = ingest(**keys, coco_held_out=(str(tmp_path / "coco/dataset_coco.json"),))
    del truth["vg/3"], truth["vg/4"]
    assert stored() == truth
    assert report.dropped == {"Visual Genome image lies in COCO val or test": 2}

    layouts.coco(tmp_path / "coco", layouts.pictures(2, first=501), "val2014")
    again = ingest(**keys, coco_held_out=(str(tmp_path / "coco/annotations/captions_val2014.json"),), name="vg2")
    assert again.dropped == {"Visual Genome image lies in COCO val or test": 2}
    assert {f"vg2/{i}" for i in range(3, 11)} == {id_ for id_ in stored() if id_.startswith("vg2/")}


def test_visual_genome_in_its_older_spelling(tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    truth = layouts.visual_genome(tmp_path, layouts.pictures(4), coco_ids={})
    data, regions = (json.loads((tmp_path / name).read_text()) for name in (
        "image_data.json", "region_descriptions.json"))
    layouts.write_json(tmp_path / "image_data.json", [{**{k: v for k, v in item.items() if k != "image_id"},
                                                       "id": item["image_id"]} for item in data])
    layouts.write_json(tmp_path / "region_descriptions.json", [{"regions": item["regions"]} for item in regions])
    layouts.coco(tmp_path / "coco", layouts.pictures(1, first=900), "val2014")
    ingest(format="vg", path=tmp_path / "region_descriptions.json", image_data=tmp_path / "image_data.json",
           images=tmp_path, split="train",
           coco_held_out=(str(tmp_path / "coco/annotations/captions_val2014.json"),))
    assert stored() == truth


@pytest.mark.parametrize("layout", [layouts.img2dataset_tars, layouts.img2dataset_parquet])
def test_img2dataset(layout: Callable[[Path, list[layouts.Picture]], Truth], tmp_path: Path, ingest: Ingest,
                     stored: Stored) -> None:
    truth = layout(tmp_path / "laion", layouts.pictures(20))
    report = ingest(format="img2dataset", path=tmp_path / "laion", split="train")
    assert stored() == truth and len(truth) == 16
    assert report.dropped == {"img2dataset: failed_to_download": 4} and report.quarantined == {}


def test_webdataset(tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    truth = layouts.webdataset(tmp_path / "shards", layouts.pictures(20))
    ingest(format="webdataset", path=tmp_path / "shards", split="train")
    assert stored() == truth


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_folder_with_a_captions_file(ending: str, tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    truth = layouts.captions_file(tmp_path, layouts.pictures(10), ending)
    keys = {"format": "folder", "path": tmp_path / "pictures", "captions": tmp_path / f"captions.{ending}",
            "split_column": "split"}
    assert ingest(**keys).added == 10 and stored() == truth
    again = ingest(**keys)
    assert again.was_there and again.added == 0 and "was there already" in told(again)[0]


def test_folder_with_texts_beside_the_images(tmp_path: Path, ingest: Ingest, stored: Stored,
                                             refused: Refused) -> None:
    truth = layouts.texts_beside(tmp_path / "mine", layouts.pictures(6))
    layouts.write(tmp_path / "mine/latin.jpg", layouts.pictures(1)[0].image)
    layouts.write(tmp_path / "mine/latin.txt", "\u00e9t\u00e9".encode("latin-1"))
    layouts.write(tmp_path / "mine/alone.jpg", layouts.pictures(1)[0].image)
    layouts.write(tmp_path / "mine/orphan.txt", "no image")
    (tmp_path / "mine" / os.fsdecode(b"\xe9.jpg")).write_bytes(layouts.pictures(1)[0].image)
    with pytest.raises(UserError, match="source.split is missing"):
        ingest(format="folder", path=tmp_path / "mine", max_bad_share=.5)
    ingest(format="folder", path=tmp_path / "mine", split="train", max_bad_share=.5)
    assert stored() == truth
    assert refused() == {"folder/latin.txt": "wrong encoding", "folder/alone.jpg": "empty caption",
                         "folder/orphan.txt": "missing file", "folder/\\udce9.jpg": "wrong encoding"}


def test_images_that_come_later_make_another_batch(tmp_path: Path, ingest: Ingest, stored: Stored) -> None:
    truth = layouts.captions_file(tmp_path, layouts.pictures(10), "csv")
    late = tmp_path / "pictures/sub/4.jpg"
    content = late.read_bytes()
    late.unlink()
    keys = {"path": tmp_path / "pictures", "captions": tmp_path / "captions.csv", "split_column": "split"}
    assert ingest(**keys, max_bad_share=.1).quarantined == {"missing file": 1}
    late.write_bytes(content)
    assert ingest(**keys).added == 1 and stored() == truth


def test_more_rows_than_a_table_keep_their_order(tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
                                                  ) -> None:
    from pipelines.sources import index
    from pipelines.sources.config import SourceConfig
    from pipelines.sources.importers import IMPORTERS

    rows = 2 * index.TABLE + 700
    lines = [f"{i:06d}.jpg,text {i}\n" for i in range(rows)]
    layouts.write(tmp_path / "captions.csv", "image,caption\n" + "".join(lines))
    config = SourceConfig(path=str(tmp_path), captions=str(tmp_path / "captions.csv"), split="train")
    source, _ = index.build_index(IMPORTERS["folder"], config, {})
    assert source.rows == rows and source.parts == 2 * index.TABLE // index.PART + 2
    seen = defaultdict(int)
    for part in range(source.parts):
        for k, entry in enumerate(source.entries(part)):
            number = part * index.PART + k
            assert isinstance(entry, index.Entry) and entry.texts == (f"text {number}",)
            seen[number] += 1
    assert len(seen) == rows


def test_a_line_with_more_fields_than_names_is_refused_and_not_cut(tmp_path: Path, ingest: Ingest, stored: Stored,
                                                                   refused: Refused) -> None:
    p = layouts.pictures(1)[0]
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        layouts.write(tmp_path / "pictures" / name, p.image)
    layouts.write(tmp_path / "c.csv", 'image,caption\n1.jpg,"a dog, running"\n2.jpg,a dog, running\n3.jpg,a cat,\n')
    ingest(path=tmp_path / "pictures", captions=tmp_path / "c.csv", split="train", max_bad_share=.5)
    assert {key: captions for key, (_, captions, _) in stored().items()} == {
        "folder/1.jpg": ("a dog, running",), "folder/3.jpg": ("a cat",)}
    assert refused() == {"folder/line 3": "wrong fields"}


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".TAR"])
def test_compressed_shards_keep_their_samples_apart(ending: str, tmp_path: Path, ingest: Ingest, stored: Stored
                                                    ) -> None:
    truth = layouts.webdataset(tmp_path / "shards", layouts.pictures(20))
    for shard in sorted((tmp_path / "shards").iterdir()):
        content = shard.read_bytes()
        shard.with_suffix(ending).write_bytes(content if ending == ".TAR" else gzip.compress(content))
        shard.unlink()
    ingest(format="webdataset", path=tmp_path / "shards", split="train")
    assert stored() == truth


def test_a_sample_of_files_that_are_not_read_is_missed(tmp_path: Path, ingest: Ingest, stored: Stored,
                                                       refused: Refused) -> None:
    p = layouts.pictures(1)[0]
    layouts.tar(tmp_path / "shards/a.tar", [("1.jpg", p.image), ("1.txt", b"a"), ("1.cls", b"7"),
                                            ("2.left.jpg", p.image), ("2.en.txt", b"b"), ("3.tiff", p.image)])
    ingest(format="webdataset", path=tmp_path / "shards", split="train", max_bad_share=1)
    assert set(stored()) == {"webdataset/a/1"}
    assert refused() == {"webdataset/a/2": "missing file", "webdataset/a/3": "missing file"}


def test_coco_images_that_share_an_id_are_not_merged_in_silence(tmp_path: Path, ingest: Ingest, stored: Stored,
                                                                refused: Refused) -> None:
    truth = layouts.coco(tmp_path, layouts.pictures(3))
    file = tmp_path / "annotations" / "captions_train2014.json"
    content = json.loads(file.read_text())
    another = content["images"][0]["file_name"]
    content["images"] += [content["images"][1], {**content["images"][2], "file_name": another}]
    layouts.write_json(file, content)
    ingest(format="coco", path=file, images=tmp_path / "train2014", max_bad_share=1)
    assert stored() == truth and refused() == {"coco/3": "duplicate id"}


def test_what_was_mended_is_quarantined_no_more(tmp_path: Path, ingest: Ingest, stored: Stored, refused: Refused
                                                ) -> None:
    """Folders are known by names and sizes: with a file in place of a link the ingest is the same batch."""
    truth = layouts.captions_file(tmp_path, layouts.pictures(4), "csv")
    late = tmp_path / "pictures/sub/4.jpg"
    late.rename(tmp_path / "elsewhere.jpg")
    late.symlink_to(tmp_path / "elsewhere.jpg")
    keys = {"path": tmp_path / "pictures", "captions": tmp_path / "captions.csv", "split_column": "split"}
    with pytest.raises(UserError, match="1 of 4 records are bad .1 unsafe name"):
        ingest(**keys)
    assert refused() == {"folder/sub/4.jpg": "unsafe name"}
    late.unlink()
    (tmp_path / "elsewhere.jpg").rename(late)
    report = ingest(**keys)
    assert stored() == truth and report.quarantined == {} and refused() == {}


def test_a_folder_without_images_is_told(tmp_path: Path, ingest: Ingest) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the source holds no record: nothing was appended to .*look at source.path"):
        ingest(path=tmp_path / "empty", split="train")
