"""Generated scenes in the official layouts of the public data sets, and what an importer must make of them."""
from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources.record import Sample
from pipelines.sources.scenes import ScenesSource

Truth = dict[str, tuple[bytes, tuple[str, ...], str]]
"""What the store must hold: image, captions and split by sample id."""


@dataclass(frozen=True)
class Picture:
    """A scene with seven captions."""

    number: int
    image: bytes
    captions: tuple[str, ...]


def pictures(count: int, first: int = 1) -> list[Picture]:
    scenes = [sample for part in range(ScenesSource(count, 0).parts) for sample in ScenesSource(count, 0).read(part)]
    assert all(isinstance(scene, Sample) for scene in scenes)
    more = ("a picture, \"quoted\"", "une scène d'été", "several things")
    return [Picture(first + i, scene.image, (*scene.captions, *more)) for i, scene in enumerate(scenes)]


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_json(path: Path, content: Any) -> Path:
    return write(path, json.dumps(content, ensure_ascii=False))


def coco(root: Path, found: Sequence[Picture], split: str = "train2014") -> Truth:
    """annotations/captions_<split>.json and <split>/; captions of an image do not stand together."""
    images, annotations = [], []
    for p in found:
        name = f"COCO_{split}_{p.number:012d}.jpg"
        write(root / split / name, p.image)
        images.append({"license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/{split}/{name}",
                       "height": 64, "width": 64, "date_captured": "2013-11-14 11:18:45", "flickr_url": "",
                       "id": p.number})
    for k in range(5):
        for p in reversed(found):
            annotations.append({"image_id": p.number, "id": 10_000 + 5 * p.number + k, "caption": p.captions[k]})
    write_json(root / "annotations" / f"captions_{split}.json",
               {"info": {"year": 2014}, "images": images, "licenses": [{"id": 3}], "annotations": annotations})
    ours = split[:-4]
    return {f"coco/{p.number}": (p.image, p.captions[:5], ours) for p in found}


def karpathy_coco(root: Path, found: Sequence[Picture], captions: int = 5) -> Truth:
    """dataset_coco.json over train2014/ and val2014/; every image has seven sentences; splits take turns."""
    truth, images, sentid = {}, [], 0
    for i, p in enumerate(found):
        split = ("train", "restval", "val", "test")[i % 4]
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{p.number:012d}.jpg"
        write(root / folder / name, p.image)
        sentences = [{"tokens": text.split(), "raw": text, "imgid": i, "sentid": sentid + k}
                     for k, text in enumerate(p.captions)]
        sentid += len(sentences)
        images.append({"filepath": folder, "sentids": [s["sentid"] for s in sentences], "filename": name, "imgid": i,
                       "split": split, "sentences": sentences, "cocoid": p.number})
        truth[f"coco/{p.number}"] = (p.image, p.captions[:captions], "train" if split == "restval" else split)
    write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return truth


def karpathy_flickr30k(root: Path, found: Sequence[Picture]) -> Truth:
    """dataset_flickr30k.json and flickr30k-images/: neither filepath nor cocoid."""
    truth, images = {}, []
    for i, p in enumerate(found):
        split = ("train", "val", "test")[i % 3]
        write(root / "flickr30k-images" / f"{p.number}.jpg", p.image)
        images.append({"sentids": list(range(5 * i, 5 * i + 5)), "imgid": i, "split": split,
                       "filename": f"{p.number}.jpg", "sentences": [
                           {"tokens": text.split(), "raw": text, "imgid": i, "sentid": 5 * i + k}
                           for k, text in enumerate(p.captions[:5])]})
        truth[f"flickr30k/{p.number}"] = (p.image, p.captions[:5], split)
    write_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return truth


def flickr30k(root: Path, found: Sequence[Picture]) -> Truth:
    """results_20130124.token, results.csv and flickr_annotations_30k.csv beside flickr30k-images/."""
    for p in found:
        write(root / "flickr30k-images" / f"{p.number}.jpg", p.image)
    lines = [(f"{p.number}.jpg", k, text) for p in found for k, text in enumerate(p.captions[:5])]
    write(root / "results_20130124.token", "".join(f"{name}#{k}\t{text}\n" for name, k, text in lines))
    write(root / "results.csv", "image_name| comment_number| comment\n" + "".join(
        f"{name}| {k}| {text}\n" for name, k, text in lines))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["raw", "sentids", "split", "filename", "img_id"])
    for i, p in enumerate(found):
        writer.writerow([json.dumps(p.captions[:5]), list(range(5)), "train", f"{p.number}.jpg", i])
    write(root / "flickr_annotations_30k.csv", table.getvalue())
    return {f"flickr30k/{p.number}": (p.image, p.captions[:5], "train") for p in found}


def visual_genome(root: Path, found: Sequence[Picture], coco_ids: dict[int, int]) -> Truth:
    """region_descriptions.json, image_data.json, VG_100K/ and VG_100K_2/; `coco_ids` by picture number."""
    regions, data, truth = [], [], {}
    for i, p in enumerate(found):
        folder = ("VG_100K", "VG_100K_2")[i % 2]
        write(root / folder / f"{p.number}.jpg", p.image)
        phrases = [*p.captions, p.captions[0]]  # the same phrase stands at two regions
        regions.append({"id": p.number, "regions": [
            {"region_id": 100 * p.number + k, "width": 20, "height": 20, "image_id": p.number, "phrase": text, "y": 0,
             "x": k} for k, text in enumerate(phrases)]})
        data.append({"width": 64, "height": 64, "image_id": p.number, "coco_id": coco_ids.get(p.number),
                     "flickr_id": None, "url": f"https://cs.stanford.edu/people/rak248/{folder}/{p.number}.jpg"})
        truth[f"vg/{p.number}"] = (p.image, p.captions, "train")
    write_json(root / "region_descriptions.json", regions)
    write_json(root / "image_data.json", data)
    return truth


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def img2dataset_tars(root: Path, found: Sequence[Picture], shard: int = 7) -> Truth:
    """00000.tar ... with {key}.jpg, .txt, .json; every fifth download failed: it stands in the sidecar only."""
    truth = {}
    for number, start in enumerate(range(0, len(found), shard)):
        members: list[tuple[str, bytes]] = []
        rows = []
        for p in found[start:start + shard]:
            key, failed = f"{number:05d}{p.number:04d}", p.number % 5 == 0
            row = _img2dataset_row(p, key, failed)
            rows.append(row)
            if not failed:
                members += [(f"{key}.jpg", p.image), (f"{key}.json", json.dumps(row).encode()),
                            (f"{key}.txt", p.captions[0].encode())]
                truth[f"img2dataset/{key}"] = (p.image, p.captions[:1], "train")
        tar(root / f"{number:05d}.tar", members)
        pq.write_table(pa.Table.from_pylist(rows), root / f"{number:05d}.parquet")
        write_json(root / f"{number:05d}_stats.json", {"count": len(rows)})
    return truth


def img2dataset_parquet(root: Path, found: Sequence[Picture], shard: int = 7) -> Truth:
    """00000.parquet ... with the images in column jpg, null where the download failed."""
    truth = {}
    root.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(found), shard)):
        rows = []
        for p in found[start:start + shard]:
            key, failed = f"{number:05d}{p.number:04d}", p.number % 5 == 0
            rows.append(_img2dataset_row(p, key, failed) | {"jpg": None if failed else p.image})
            if not failed:
                truth[f"img2dataset/{key}"] = (p.image, p.captions[:1], "train")
        pq.write_table(pa.Table.from_pylist(rows), root / f"{number:05d}.parquet", row_group_size=4)
    return truth


def _img2dataset_row(p: Picture, key: str, failed: bool) -> dict[str, Any]:
    return {"url": f"https://example.org/{p.number}.jpg", "caption": p.captions[0], "key": key,
            "status": "failed_to_download" if failed else "success",
            "error_message": "HTTP Error 404: Not Found" if failed else None, "width": None if failed else 64,
            "height": None if failed else 64, "original_width": None if failed else 64,
            "original_height": None if failed else 64, "exif": None if failed else "{}", "sha256": None}


def webdataset(root: Path, found: Sequence[Picture], shard: int = 7) -> Truth:
    """shard-000000.tar ... whose captions stand in .json or .txt in turn, beside a file that is of no interest."""
    truth = {}
    for number, start in enumerate(range(0, len(found), shard)):
        members: list[tuple[str, bytes]] = []
        for k, p in enumerate(found[start:start + shard]):
            caption = ((".json", json.dumps({"caption": list(p.captions[:2])})), (".txt", p.captions[0]))[k % 2]
            members += [(f"./train/{k:03d}.png" if k == 0 else f"./train/{k:03d}.jpg", p.image),
                        (f"./train/{k:03d}{caption[0]}", caption[1].encode()), (f"./train/{k:03d}.cls", b"7")]
            truth[f"webdataset/shard-{number:06d}/train/{k:03d}"] = (p.image, p.captions[:2 - k % 2], "train")
        tar(root / f"shard-{number:06d}.tar", members)
    return truth


def captions_file(root: Path, found: Sequence[Picture], ending: str) -> Truth:
    """pictures/ and captions.<ending>, a line a caption (JSON lines: a line an image), with a split each."""
    rows = []
    for i, p in enumerate(found):
        write(root / "pictures" / f"sub/{p.number}.jpg", p.image)
        split = ("train", "val")[i % 2]
        if ending == "jsonl":
            rows.append({"image": f"sub/{p.number}.jpg", "caption": list(p.captions), "split": split})
        else:
            rows += [{"image": f"./sub/{p.number}.jpg", "caption": text, "split": split} for text in p.captions]
    out = io.StringIO()
    if ending == "jsonl":
        out.write("\n".join(map(json.dumps, rows)))
    elif ending == "csv":
        writer = csv.DictWriter(out, ["split", "image", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    else:
        out.write("image\tcaption\tsplit\n" + "".join(f"{r['image']}\t{r['caption']}\t{r['split']}\n" for r in rows))
    write(root / f"captions.{ending}", out.getvalue())
    return {f"folder/sub/{p.number}.jpg": (p.image, p.captions, ("train", "val")[i % 2]) for i, p in enumerate(found)}


def texts_beside(root: Path, found: Sequence[Picture]) -> Truth:
    """{number}.jpg with {number}.txt beside it, a line a caption."""
    for p in found:
        write(root / f"{p.number}.jpg", p.image)
        write(root / f"{p.number}.txt", "\n".join(p.captions[:3]) + "\n")
    return {f"folder/{p.number}.jpg": (p.image, p.captions[:3], "train") for p in found}


def vqa2(root: Path, found: Sequence[Picture], subset: str = "train2014", annotated: bool = True) -> dict[str, Any]:
    """v2_OpenEnded_mscoco_<subset>_questions.json, v2_mscoco_<subset>_annotations.json and <subset>/.

    Three questions an image, which do not stand together. Returns annotations by sample id.
    """
    questions, annotations, truth = [], [], {}
    for p in found:
        write(root / subset / f"COCO_{subset}_{p.number:012d}.jpg", p.image)
        truth[f"coco/{p.number}"] = []
    for k in range(3):
        for p in reversed(found):
            question = {"image_id": p.number, "question": f"What is {p.captions[k]}?",
                        "question_id": 1000 * p.number + k}
            answers = [{"answer": ("yes", "no")[(i + k) % 2], "answer_confidence": "maybe", "answer_id": i + 1}
                       for i in range(10)]
            answer = {"question_type": "what is", "multiple_choice_answer": "yes", "answers": answers,
                      "image_id": p.number, "answer_type": "yes/no", "question_id": 1000 * p.number + k}
            questions.append(question)
            annotations.append(answer)
            known = {"question_id": question["question_id"], "question": question["question"]}
            truth[f"coco/{p.number}"].append({**known, "question_type": "what is", "answer_type": "yes/no",
                                              "multiple_choice_answer": "yes",
                                              "answers": [a["answer"] for a in answers]} if annotated else {
                **known, "question_type": None, "answer_type": None, "multiple_choice_answer": None, "answers": None})
    write_json(root / f"v2_OpenEnded_mscoco_{subset}_questions.json", {
        "info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}, "data_subtype": subset,
        "questions": questions})
    if annotated:
        write_json(root / f"v2_mscoco_{subset}_annotations.json", {
            "info": {}, "license": {}, "data_subtype": subset, "annotations": annotations, "data_type": "mscoco"})
    return truth


def visual_genome_qa(root: Path, found: Sequence[Picture]) -> dict[str, Any]:
    """question_answers.json beside visual_genome()'s files."""
    write_json(root / "question_answers.json", [
        {"id": p.number, "qas": [{"a_objects": [], "question": f"Where is {p.captions[0]}?", "image_id": p.number,
                                  "qa_id": 7000 + p.number, "answer": "Here.", "q_objects": []}]} for p in found])
    return {f"vg/{p.number}": [{"question_id": 7000 + p.number, "question": f"Where is {p.captions[0]}?",
                                "question_type": None, "answer_type": None, "multiple_choice_answer": "Here.",
                                "answers": ["Here."]}] for p in found}


def nlvr2(root: Path, found: Sequence[Picture], split: str = "train") -> dict[str, Any]:
    """data/<split>.json (JSON lines) and images/<split>/; two statements a pair; half of the .png are JPEG inside."""
    lines, truth = [], {}
    for i in range(0, len(found) - 1, 2):
        pair, directory = f"{split}-{10 + i}-0", i % 3
        folder = root / "images" / split / (str(directory) if split == "train" else "")
        for side in (0, 1):
            write(folder / f"{pair}-img{side}.png", found[i + side].image)
        truth[f"nlvr2/{pair}"] = []
        for k, label in enumerate(("True", "False")):
            line = {"sentence": found[i].captions[k], "left_url": "https://l", "right_url": "https://r", "label": label,
                    "identifier": f"{pair}-{k}", "writer": 7, "validation": {"1": label}, "synset": "x", "query": "y"}
            lines.append(line | ({"directory": directory} if split == "train" else {}))
            truth[f"nlvr2/{pair}"].append({"identifier": f"{pair}-{k}", "sentence": found[i].captions[k],
                                           "label": label == "True"})
    write(root / "data" / f"{split}.json", "".join(json.dumps(line) + "\n" for line in lines[::2] + lines[1::2]))
    return truth


def snli_ve(root: Path, found: Sequence[Picture], spelling: str, split: str = "train") -> dict[str, Any]:
    """snli_ve_<split>.jsonl over flickr30k-images/; three hypotheses an image."""
    lines, truth = [], {}
    for p in found:
        write(root / "flickr30k-images" / f"{p.number}.jpg", p.image)
        truth[f"flickr30k/{p.number}"] = []
        for k, gold in enumerate(("entailment", "neutral", "contradiction")):
            lines.append({spelling: str(p.number), "gold_label": gold, "captionID": f"{p.number}.jpg#{k}",
                          "pairID": f"{p.number}.jpg#{k}r1e", "sentence1": "THE PREMISE", "sentence2": p.captions[k],
                          "annotator_labels": [gold]})
            truth[f"flickr30k/{p.number}"].append({"pair_id": f"{p.number}.jpg#{k}r1e", "hypothesis": p.captions[k],
                                                   "label": {"contradiction": 0, "neutral": 1, "entailment": 2}[gold]})
    apart = lines[::3] + lines[1::3] + lines[2::3]
    write(root / f"snli_ve_{split}.jsonl", "".join(json.dumps(line) + "\n" for line in apart))
    return truth
