"""VQA v2, NLVR2 and SNLI-VE in their official layouts become task tables: one row an image, every annotation once."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.sources import task_table
from pipelines.sources.task_table import MANIFEST, read_task_table
from pipelines.store.attempts import LOCKS
from tests.pipelines.sources import layouts
from tests.pipelines.sources.conftest import Ingest

Refused = Callable[[], dict[str, str]]


def rows_of(table: Path) -> dict[str, dict[str, Any]]:
    rows = [row for batch in read_task_table(table) for row in batch.to_pylist()]
    by_id = {row["sample_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def annotations_of(table: Path) -> dict[str, list[dict[str, Any]]]:
    return {key: row["annotations"] for key, row in rows_of(table).items()}


def test_vqa_joins_questions_and_answers_of_an_image(tmp_path: Path, ingest: Ingest) -> None:
    found = layouts.pictures(9)
    train = layouts.vqa2(tmp_path, found[:6])
    test = layouts.vqa2(tmp_path, found[6:], "test2015", annotated=False)
    report = ingest(format="vqa2", path=tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json",
                    annotations=tmp_path / "v2_mscoco_train2014_annotations.json", images=tmp_path / "train2014")
    assert report.added == 6 and report.rows == {("coco", "train"): 6}
    report = ingest(format="vqa2", path=tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", images=tmp_path)
    assert report.rows == {("coco", "train"): 6, ("coco", "test"): 3}
    assert annotations_of(tmp_path / "store") == {**train, **test}
    rows = rows_of(tmp_path / "store")
    assert [rows[f"coco/{p.number}"]["images"] for p in found] == [[p.image] for p in found]
    assert [row["sample_id"] for b in read_task_table(tmp_path / "store", ["sample_id"], "test") for row in
            b.to_pylist()] == list(test)


def test_vqa_names_what_stands_in_one_file_only(tmp_path: Path, ingest: Ingest, refused: Refused) -> None:
    truth = layouts.vqa2(tmp_path, layouts.pictures(4))
    answers = tmp_path / "v2_mscoco_train2014_annotations.json"
    content = json.loads(answers.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["question_id"] != 2001]
    content["annotations"].append(dict(content["annotations"][0], question_id=9, image_id=3))
    layouts.write_json(answers, content)
    keys = {"format": "vqa2", "path": tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json",
            "annotations": answers, "images": tmp_path}
    with pytest.raises(UserError, match=r"2 of 6 records are bad .*nothing was changed"):
        ingest(**keys)
    assert {path.name for path in (tmp_path / "store").glob("*/*")} == {LOCKS}
    ingest(**keys, max_bad_share=.4)
    assert refused() == {"coco/2/2001": "no answer", "coco/3/9": "unknown question"}
    truth["coco/2"] = [a for a in truth["coco/2"] if a["question_id"] != 2001]
    assert annotations_of(tmp_path / "store") == truth


def test_visual_genome_questions_leave_out_what_coco_evaluates_on(tmp_path: Path, ingest: Ingest) -> None:
    found = layouts.pictures(5)
    layouts.visual_genome(tmp_path, found, coco_ids={2: 900})
    truth = layouts.visual_genome_qa(tmp_path, found)
    layouts.coco(tmp_path / "coco", layouts.pictures(1, first=900), "val2014")
    report = ingest(format="vg_qa", path=tmp_path / "question_answers.json", images=tmp_path, split="train",
                    image_data=tmp_path / "image_data.json",
                    coco_held_out=(str(tmp_path / "coco/annotations/captions_val2014.json"),))
    del truth["vg/2"]
    assert annotations_of(tmp_path / "store") == truth and report.dropped.total() == 1


def test_nlvr2_rows_are_pairs(tmp_path: Path, ingest: Ingest, refused: Refused) -> None:
    found = layouts.pictures(12)
    truth = layouts.nlvr2(tmp_path, found[:8]) | layouts.nlvr2(tmp_path, found[8:], "dev")
    for split in ("train", "dev"):
        report = ingest(format="nlvr2", path=tmp_path / f"data/{split}.json", images=tmp_path / "images")
    assert report.rows == {("nlvr2", "train"): 4, ("nlvr2", "val"): 2}
    assert annotations_of(tmp_path / "store") == truth
    assert rows_of(tmp_path / "store")["nlvr2/train-12-0"]["images"] == [found[2].image, found[3].image]

    (tmp_path / "images/dev/dev-10-0-img1.png").unlink()
    ingest(format="nlvr2", path=tmp_path / "data/dev.json", images=tmp_path / "images", max_bad_share=.5)
    assert refused() == {"nlvr2/dev-10-0": "missing file"}
    del truth["nlvr2/dev-10-0"]
    assert annotations_of(tmp_path / "store") == truth  # the newer state of dev took the older one's place


@pytest.mark.parametrize("spelling", ["Flickr30K_ID", "Flikr30kID"])
def test_snli_ve_never_holds_the_premise(spelling: str, tmp_path: Path, ingest: Ingest, refused: Refused) -> None:
    truth = layouts.snli_ve(tmp_path, layouts.pictures(5), spelling, "dev")
    with (tmp_path / "snli_ve_dev.jsonl").open("a") as file:
        file.write(json.dumps({spelling: "1", "gold_label": "-", "pairID": "x", "sentence2": "y"}) + "\n")
    keys = {"format": "snli_ve", "path": tmp_path / "snli_ve_dev.jsonl", "images": tmp_path / "flickr30k-images"}
    report = ingest(**keys, max_bad_share=.5)
    assert report.rows == {("flickr30k", "val"): 5} and refused() == {"flickr30k/line 16": "no label"}
    assert annotations_of(tmp_path / "store") == truth
    for file in (tmp_path / "store").rglob("*"):
        assert not file.is_file() or b"PREMISE" not in file.read_bytes()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("*")}
    assert ingest(**keys, max_bad_share=.5).was_there
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("*")} == before


def test_questions_that_share_an_id_are_not_dropped_in_silence(tmp_path: Path, ingest: Ingest, refused: Refused
                                                               ) -> None:
    truth = layouts.vqa2(tmp_path, layouts.pictures(2))
    file = tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json"
    content = json.loads(file.read_text())
    content["questions"] += [content["questions"][0], {**content["questions"][1], "question": "Another one?"}]
    layouts.write_json(file, content)
    ingest(format="vqa2", path=file, annotations=tmp_path / "v2_mscoco_train2014_annotations.json",
           images=tmp_path, max_bad_share=.4)
    assert annotations_of(tmp_path / "store") == truth
    assert refused() == {f"coco/{content['questions'][1]['image_id']}/{content['questions'][1]['question_id']}":
                         "duplicate id"}
    layouts.write_json(file, {**content, "data_subtype": {"train2014": 1}})
    with pytest.raises(UserError, match="data_subtype .* is not one of train2014, val2014"):
        ingest(format="vqa2", path=file, images=tmp_path)


def test_an_annotations_file_without_a_record_changes_nothing(tmp_path: Path, ingest: Ingest) -> None:
    truth = layouts.snli_ve(tmp_path, layouts.pictures(3), "Flickr30K_ID")
    keys = {"format": "snli_ve", "path": tmp_path / "snli_ve_train.jsonl", "images": tmp_path / "flickr30k-images"}
    ingest(**keys)
    keys["path"].write_text("\n")
    with pytest.raises(UserError, match="the source holds no record: nothing was changed in .*snli_ve_train"):
        ingest(**keys)
    assert annotations_of(tmp_path / "store") == truth


def test_ingests_at_once_leave_each_others_files_alone(tmp_path: Path, ingest: Ingest,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A second ingest runs whole between the first one's files and its manifest; the first is the later to end."""
    truth = layouts.snli_ve(tmp_path, layouts.pictures(3), "Flickr30K_ID")
    keys = {"format": "snli_ve", "path": tmp_path / "snli_ve_train.jsonl", "images": tmp_path / "flickr30k-images"}
    judge, states = task_table._judge, []

    def then(*arguments: Any) -> dict[str, Any]:
        if not states:
            states.append(None)
            keys["path"].write_text("\n".join(keys["path"].read_text().splitlines()[:3]))
            ingest(**keys)
            states[0] = annotations_of(tmp_path / "store")
        return judge(*arguments)
    monkeypatch.setattr(task_table, "_judge", then)
    ingest(**keys)
    assert states == [{key: found[:1] for key, found in truth.items()}]
    assert annotations_of(tmp_path / "store") == truth
    folder = tmp_path / "store/snli_ve-snli_ve_train"
    assert {file.name for file in folder.glob("*.parquet")} == set(json.loads((folder / MANIFEST).read_text())["files"])


def test_a_killed_attempts_files_do_not_count(tmp_path: Path, ingest: Ingest) -> None:
    truth = layouts.snli_ve(tmp_path, layouts.pictures(3), "Flickr30K_ID")
    keys = {"format": "snli_ve", "path": tmp_path / "snli_ve_train.jsonl", "images": tmp_path / "flickr30k-images"}
    ingest(**keys)
    folder = tmp_path / "store/snli_ve-snli_ve_train"
    (name,) = json.loads((folder / MANIFEST).read_text())["files"]
    (folder / "part-000000-0000-deadbeef.parquet").write_bytes((folder / name).read_bytes())
    assert annotations_of(tmp_path / "store") == truth
    (tmp_path / "snli_ve_train.jsonl").write_text((tmp_path / "snli_ve_train.jsonl").read_text() + "\n")
    ingest(**keys)
    assert annotations_of(tmp_path / "store") == truth
    assert {file.name for file in folder.iterdir()} == {
        LOCKS, MANIFEST, *json.loads((folder / MANIFEST).read_text())["files"]}
