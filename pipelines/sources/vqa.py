"""VQA v2's questions and annotations, and Visual Genome's questions as extra training data: rows of a task table."""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.errors import UserError
from pipelines.sources import visual_genome
from pipelines.sources.config import SourceConfig
from pipelines.sources.files import Refused
from pipelines.sources.gather import Fact, bad, gather, rejections
from pipelines.sources.index import Dropped, Entry
from pipelines.sources.json_files import field, json_items
from pipelines.sources.record import Rejected

SPLITS = {"train2014": "train", "val2014": "val", "test2015": "test", "test-dev2015": "test-dev"}


def entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """The images of a questions file with their questions, joined with the annotations where there are some.

    The split and the names of the images follow from the file's data_subtype; source.split goes before it.
    """
    subset = next(json_items(config.path, "data_subtype"))
    if not isinstance(subset, str) or subset not in SPLITS:
        raise UserError(f"{config.path}: data_subtype {subset!r:.80} is not one of {', '.join(SPLITS)}: name VQA v2's "
                        "questions file")
    split, folder = config.our_split(config.split or SPLITS[subset]), subset.replace("test-dev", "test")
    for image_id, found in gather(_facts(config)):
        reference = f"{config.source_name}/{image_id}"
        yield from rejections(reference, found)
        twice: list[int] = []
        questions, answered = (_by_id(found.get(kind, ()), twice) for kind in ("question", "annotation"))
        yield from (Rejected(f"{reference}/{question_id}", "duplicate id", "the first that has it stays")
                    for question_id in twice)
        for question_id in sorted(answered.keys() ^ questions.keys()) if config.annotations else ():
            yield Rejected(f"{reference}/{question_id}", "unknown question" if question_id in answered else "no answer",
                           "it stands in one of the two files only")
        texts = tuple(json.dumps({**answered.get(key, {}), **question}) for key, question in questions.items()
                      if key in answered or not config.annotations)
        if texts:
            name = f"COCO_{folder}_{int(image_id):012d}.jpg"
            yield Entry(reference, split, (name, f"{folder}/{name}"), texts, {"coco_id": int(image_id)})


def visual_genome_entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """Visual Genome's images with their questions (question_answers.json), each with one answer."""
    yield from visual_genome.joined(config, dropped, _visual_genome_facts(config.path))


def _facts(config: SourceConfig) -> Iterator[Fact]:
    yield from _items(config.path, "questions.item", "question", _question)
    if config.annotations:
        yield from _items(config.annotations, "annotations.item", "annotation", _annotation)


def _by_id(texts: Iterable[str], twice: list[int]) -> dict[int, dict[str, Any]]:
    """The questions or annotations by their id; ids that two different ones have go to `twice`."""
    items: dict[int, dict[str, Any]] = {}
    for item in map(json.loads, texts):
        if items.setdefault(item["question_id"], item) != item:
            twice.append(item["question_id"])
    return items


def _items(place: str, path: str, kind: str, parse: Any) -> Iterator[Fact]:
    for number, item in enumerate(json_items(place, path)):
        try:
            yield str(field(item, "image_id", int)), kind, json.dumps(parse(item))
        except Refused as error:
            yield bad(f"{path.removesuffix('.item')}[{number}]", error)


def _question(item: Any) -> dict[str, Any]:
    return {"question_id": field(item, "question_id", int), "question": field(item, "question", str)}


def _annotation(item: Any) -> dict[str, Any]:
    return {"question_id": field(item, "question_id", int), "question_type": field(item, "question_type", str),
            "answer_type": field(item, "answer_type", str),
            "multiple_choice_answer": field(item, "multiple_choice_answer", str),
            "answers": [field(answer, "answer", str) for answer in field(item, "answers", list)]}


def _visual_genome_facts(path: str) -> Iterator[Fact]:
    for number, item in enumerate(json_items(path, "item")):
        try:
            for qa in field(item, "qas", list):
                answer = field(qa, "answer", str)
                yield str(field(qa, "image_id", int)), "text", json.dumps({
                    "question_id": field(qa, "qa_id", int), "question": field(qa, "question", str),
                    "multiple_choice_answer": answer, "answers": [answer]})
        except Refused as error:
            yield bad(f"question_answers[{number}]", error)
