"""Held-out evaluation: shares of ranks, wrong texts, re-ranking and pair accuracies against independent counts."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from omegaconf import OmegaConf

from ashnets.metrics.retrieval import recalls
from jobs import cli
from pipelines.config import DataConfig, PretrainConfig
from pipelines.evaluation.features import extract
from pipelines.evaluation.held_out import HeldOut
from pipelines.evaluation.pairs import pair_metrics, pair_totals, wrong_texts
from pipelines.evaluation.rerank import reranked
from pipelines.evaluation.split import share
from pipelines.sources.record import Sample
from pipelines.sources.scenes import ScenesSource
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore
from pipelines.store.validate import to_row
from pipelines.training.model import build_model

CPU = torch.device("cpu")
TINY = Path(__file__).resolve().parents[2] / "e2e" / "tiny.yaml"


@pytest.fixture(scope="module")
def config() -> PretrainConfig:
    return cli.parse(PretrainConfig, ["--config", str(TINY)], description="").config


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageTextStore:
    """21 held-out scenes; the last two are copies of the first, so that pictures and captions repeat."""
    source = ScenesSource(train=0, val=19, side=32, seed=0)
    samples = [sample for part in range(source.parts) for sample in source.read(part)]
    assert all(isinstance(sample, Sample) for sample in samples)
    rows = [to_row(sample, "scenes", "b", DataConfig()) for sample in samples]
    rows += [rows[0] | {"sample_id": f"scenes/val/9{i}"} for i in range(2)]
    made = ImageTextStore(tmp_path_factory.mktemp("held-out") / "store")
    made.append([pa.Table.from_pylist(rows, schema=STORE_SCHEMA)], "b")
    return made


@pytest.fixture(scope="module")
def held_out(config: PretrainConfig, store: ImageTextStore) -> HeldOut:
    return HeldOut(config, store.path, store.version(), CPU, limit=0)


@pytest.fixture(scope="module")
def model(config: PretrainConfig):
    return build_model(config).eval()


def test_ranks_share_the_images_and_agree_with_one_process(held_out: HeldOut, model):
    split = held_out.splits["retrieval"]
    whole = extract(model, split, 8, CPU)
    shares = [extract(model, split, 5, CPU, rank, 2) for rank in range(2)]
    own = torch.cat([part.own for part in shares])
    assert sorted(set(own.tolist())) == list(range(len(split)))
    tokens = torch.empty_like(whole.tokens)
    for part in shares:
        tokens[part.own] = part.tokens
    order = torch.empty_like(whole.tokens)
    order[whole.own] = whole.tokens
    torch.testing.assert_close(tokens, order, rtol=1e-4, atol=1e-4)


def test_captions_keep_their_order_and_need_no_padding(held_out: HeldOut, model, monkeypatch: pytest.MonkeyPatch):
    """They are encoded by length, in batches; each alone at full length gives the same."""
    monkeypatch.setattr("pipelines.evaluation.features.TEXT_BATCH", 7)
    split = held_out.splits["retrieval"]
    found = extract(model, split, 8, CPU)
    assert len(set(split.attention_mask.sum(dim=1).tolist())) > 1 and len(split.captions) > 7
    with torch.no_grad():
        pooled = [model.model.encode_text(split.input_ids[row:row + 1], split.attention_mask[row:row + 1]).pooled
                  for row in range(len(split.captions))]
        expected = torch.cat([model.embed_text(text) for text in pooled])
    torch.testing.assert_close(found.text, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.text_feature, torch.nn.functional.normalize(torch.cat(pooled), dim=-1),
                               rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("total", "world"), [(21, 2), (21, 3), (21, 4), (2, 3), (6, 3)])
def test_all_ranks_run_equally_many_and_each_thing_counts_once(total: int, world: int):
    """A rank with fewer forwards than the others would leave them waiting for ever under ZeRO-3."""
    shares = [share(total, rank, world) for rank in range(world)]
    assert len({len(part) for part in shares}) == 1
    assert all(len(set(part)) == len(part) for part in shares)
    assert sorted(i for rank, part in enumerate(shares) for i in part if i % world == rank) == list(range(total))


def test_the_totals_of_ranks_add_up_to_one_process(held_out: HeldOut, model):
    split = held_out.splits["retrieval"]
    whole = extract(model, split, 8, CPU)
    expected = pair_totals(model, split, whole, held_out._tokenizer, 0.25, 8, CPU)
    found: Counter[str] = Counter()
    for rank in range(2):
        part = extract(model, split, 5, CPU, rank, 2)
        assert len(part.own) == 11
        part = replace(part, image=whole.image, text=whole.text)  # what gathering over the ranks gives
        found.update(pair_totals(model, split, part, held_out._tokenizer, 0.25, 5, CPU))
    for name in expected.keys() - {"mlm/wrong"}:  # a wrong image is one of the rank's own
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-4), name


def test_metrics_depend_on_neither_batch_size_nor_order(config: PretrainConfig, store: ImageTextStore, model):
    found = []
    for batch in (4, 64):
        other = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), {"evaluation": {"batch": batch}}))
        assert isinstance(other, PretrainConfig)
        found.append(HeldOut(other, store.path, store.version(), CPU, limit=0).validate(model).metrics)
    for name in ("retrieval/i2t_r1", "retrieval/t2i_r5", "itm/accuracy_hard", "mlm/accuracy_right_image",
                 "mvm/explained"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-6), name


def test_a_wrong_text_is_never_the_images_own_in_words_or_picture(held_out: HeldOut, model):
    split = held_out.splits["retrieval"]
    features = extract(model, split, 8, CPU)
    similarity = features.image[features.own] @ features.text.T
    for chosen in wrong_texts(split, features.own, similarity).values():
        for image, text in zip(features.own.tolist(), chosen.tolist(), strict=True):
            mine = [c for c, i in enumerate(split.image_of_caption.tolist())
                    if split.image_class[i] == split.image_class[image]]
            assert split.image_class[split.image_of_caption[text]] != split.image_class[image]
            assert split.captions[text] not in {split.captions[c] for c in mine}


def test_itm_accuracy_is_the_mean_over_true_and_wrong_pairs(config: PretrainConfig, held_out: HeldOut, model,
                                                          monkeypatch: pytest.MonkeyPatch):
    """A head that says `matched` to everything is right about half of the pairs."""
    split = held_out.splits["retrieval"]
    features = extract(model, split, 8, CPU)
    monkeypatch.setattr(model, "match", lambda fused, attention: torch.ones(len(fused.cls)))
    totals = pair_totals(model, split, features, held_out._tokenizer, 0.25, 8, CPU)
    metrics = pair_metrics(model, totals)
    assert metrics["itm/accuracy_random"] == metrics["itm/accuracy_hard"] == 0.5
    assert totals["pairs"] == totals["itm/true"] == len(split) and totals["itm/random"] == 0
    assert totals["mlm/words"] >= len(split)


def test_reranking_by_a_perfect_match_is_perfect_and_by_nothing_is_itc(held_out: HeldOut, model,
                                                                       monkeypatch: pytest.MonkeyPatch):
    split = held_out.splits["retrieval"]
    features = extract(model, split, 8, CPU)
    first = split.first_caption
    monkeypatch.setattr(model, "match", lambda fused, attention: torch.zeros(len(fused.cls)))
    plain = recalls(features.image @ features.text[first].T, torch.arange(len(split)), split.caption_class[first],
                    split.image_class)
    assert reranked(model, split, features, len(split), CPU) == plain

    by_tokens = {tokens.numpy().tobytes(): features.own[row].item() for row, tokens in enumerate(features.tokens)}

    def fuse(ids, attention, tokens, mask):
        images = [by_tokens[t.numpy().tobytes()] for t in tokens]
        texts = [next(i for i in range(len(split)) if torch.equal(split.input_ids[first[i]], row)) for row in ids]
        same = [split.image_class[i] == split.image_class[t] for i, t in zip(images, texts, strict=True)]
        return torch.tensor([100.0 if s else -100.0 for s in same])

    monkeypatch.setattr(model.model, "fuse", fuse)
    monkeypatch.setattr(model, "match", lambda fused, attention: fused)
    perfect = reranked(model, split, features, len(split), CPU)
    assert perfect["i2t_r1"] == perfect["t2i_r1"] == 1.0


def test_an_empty_split_is_named(config: PretrainConfig, store: ImageTextStore):
    other = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config),
                                                {"evaluation": {"unseen_split": "nowhere"}}))
    assert isinstance(other, PretrainConfig)
    with pytest.raises(ValueError, match="no samples of split 'nowhere'"):
        HeldOut(other, store.path, store.version(), CPU)


def test_without_itc_nothing_is_retrieved_and_the_rest_is_measured(config: PretrainConfig, held_out: HeldOut):
    """And each task alone can be evaluated."""
    for alone in ("itm", "mlm", "mvm", "stua", "itc"):
        weights = {name: replace(getattr(config.tasks, name), weight=float(name == alone))
                   for name in ("itc", "itm", "mlm", "mvm", "stua")}
        model = build_model(replace(config, tasks=replace(config.tasks, **weights))).eval()
        found = held_out.validate(model)
        keys = {key for key in found.metrics if not key.startswith("held_out_firing_rate/")}
        expected = {"itm": {"itm/accuracy_random"}, "mlm": {"mlm/accuracy_right_image", "mlm/accuracy_wrong_image"},
                    "mvm": {"mvm/explained"}, "stua": {"stua/a2t_r5"},
                    "itc": {f"retrieval/{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}}
        assert keys == expected[alone]
        assert bool(found.similarity) is (alone == "itc")
