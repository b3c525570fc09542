"""Zero-shot evaluation on a store: categories from the metadata, accuracy against a count by hand."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ashnets.processing import Tokenizer
from ashnets.zero_shot import TEMPLATES
from pipelines.evaluation.held_out import HeldOut
from pipelines.evaluation.zero_shot import Categories, read_categories, zero_shot
from pipelines.store.table import ImageTextStore
from pipelines.training.model import build_model
from tests.pipelines.small_run import make_store, scene_rows, tiny_config

CATEGORIES = ["animals-and-nature", "objects", "objects", None, "food", "objects"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageTextStore:
    rows = scene_rows(0, 10)
    for row, category in zip(rows, CATEGORIES, strict=False):
        row |= {"split": "unseen", "metadata": json.dumps({} if category is None else {"category": category})}
    rows[3]["metadata"] = "no JSON"
    return make_store(tmp_path_factory.mktemp("data") / "store", rows)


def ids(store: ImageTextStore, split: str) -> list[str]:
    return sorted(name for batch in store.iter_batches(["sample_id"], split) for name in batch["sample_id"].to_pylist())


def test_categories_are_read_in_words(store: ImageTextStore) -> None:
    found = read_categories(store.path, store.version(), "unseen", ids(store, "unseen"))
    assert found is not None and found.names == ("animals and nature", "food", "objects")
    assert found.rows.tolist() == [0, 1, 2, 4, 5] and found.truth.tolist() == [0, 2, 2, 1, 2]
    assert found.chance == 3 / 5
    few = read_categories(store.path, store.version(), "unseen", ids(store, "unseen")[1:5])
    assert few is not None and few.rows.tolist() == [0, 1, 3] and few.names == ("food", "objects")
    assert read_categories(store.path, store.version(), "val", ids(store, "val")) is None  # all are scenes


def test_accuracy_is_that_of_a_loop(store: ImageTextStore) -> None:
    config = tiny_config()
    model = build_model(config).eval()
    tokenizer = Tokenizer(config.model.text.tokenizer, config.model.text.max_tokens)
    images = torch.nn.functional.normalize(torch.randn(30, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    names, truth = ("cat", "red house", "food"), torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(1))
    rows = torch.arange(5, 25)
    hits = 0
    with torch.no_grad():
        means = []
        for name in names:
            texts = [str(template).replace("{}", name) for template in TEMPLATES]
            encoded = [model.embed_text(model.model.encode_text(*(torch.from_numpy(a) for a in tokenizer([t]))).pooled)
                       for t in texts]
            means.append(torch.nn.functional.normalize(torch.cat(encoded).mean(0), dim=0))
    for row, own in zip(rows.tolist(), truth.tolist(), strict=True):
        cosines = [float(images[row] @ mean) for mean in means]
        hits += cosines.index(max(cosines)) == own
    found = zero_shot(model, Categories(names, rows, truth), images, tokenizer, torch.device("cpu"))
    assert found == {"top1": pytest.approx(hits / 20)} and 0 < hits < 20


def test_the_evaluation_has_it_where_there_are_unseen_categories(store: ImageTextStore) -> None:
    config = tiny_config()
    config = replace(config, evaluation=replace(config.evaluation, unseen_split="unseen"))
    held_out = HeldOut(config, Path(store.path), store.version(), torch.device("cpu"), limit=0)
    metrics = held_out.validate(build_model(config)).metrics
    assert 0 <= metrics["zero_shot/top1"] <= 1 and held_out.chance()["zero_shot/top1"] == 3 / 5
    plain = HeldOut(tiny_config(), Path(store.path), store.version(), torch.device("cpu"), limit=0)
    assert "zero_shot/top1" not in plain.chance()
    assert not any(key.startswith("zero_shot") for key in plain.validate(build_model(config)).metrics)
