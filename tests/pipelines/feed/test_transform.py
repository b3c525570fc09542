"""The transform: what depends on what, bad samples and their mates, captions, padding copies."""
from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from PIL import Image

from pipelines.feed.order import generator
from pipelines.feed.transform import ARRAYS, array_column, transform_block

from .conftest import MakePlan
from .small_stores import SmallStore, encode

SIZE = 3


def transformed(rows: list[dict], make_plan: MakePlan, epoch: int = 0, **changes: object) -> tuple[list[dict], list]:
    """One dict a sample ({sample_id, array columns}) and what was replaced, of a block of these rows."""
    plan = make_plan(**changes)
    block = pa.Table.from_pylist([{"position": i, "epoch": epoch, **row} for i, row in enumerate(rows)])
    out = transform_block(block, plan)
    arrays = {name: array_column(out, name).reshape(len(rows) * SIZE, -1) for name in ARRAYS}
    ids = [i for members in out["sample_ids"].to_pylist() for i in members]
    return ([{"sample_id": i, **{name: arrays[name][n].tolist() for name in ARRAYS}} for n, i in enumerate(ids)],
            out["bad"].to_pylist())


@pytest.fixture
def row(small_store: SmallStore) -> dict:
    return copy.deepcopy(small_store.rows[1])


def test_a_sample_depends_on_seed_epoch_and_its_id_alone(small_store: SmallStore, make_plan: MakePlan) -> None:
    first, second = small_store.rows[1], copy.deepcopy(small_store.rows[2])
    for name in ("sample_ids", "images", "captions", "image_classes"):
        second[name][0] = first[name][2]
    here = {s["sample_id"]: s for s in transformed([first], make_plan)[0]}
    there = {s["sample_id"]: s for s in transformed([small_store.rows[5], second], make_plan)[0]}
    moved = first["sample_ids"][2]
    assert here[moved] == there[moved]
    for other in (transformed([first], make_plan, epoch=1)[0], transformed([first], make_plan, seed=8)[0]):
        sample = next(s for s in other if s["sample_id"] == moved)
        assert sample["pixels"] != here[moved]["pixels"]
        assert sample["image_class"] == here[moved]["image_class"]


def test_members_change_places_from_epoch_to_epoch(row: dict, make_plan: MakePlan) -> None:
    orders = [tuple(s["sample_id"] for s in transformed([row], make_plan, epoch=e)[0]) for e in range(60)]
    assert len(set(orders)) == 6 and all(sorted(order) == row["sample_ids"] for order in orders)


def test_padding_copies_weigh_nothing(row: dict, make_plan: MakePlan) -> None:
    row["real"] = [True, False, True]
    samples, bad = transformed([row], make_plan)
    assert {s["sample_id"]: s["weight"] for s in samples} == dict(zip(row["sample_ids"], ([1], [0], [1]), strict=True))
    assert bad == [[]]


def damaged_but_rescuable() -> bytes:
    """A JPEG with garbage before its end, which PIL decodes and simplejpeg refuses."""
    data = encode(np.zeros((40, 40, 3), np.uint8))
    broken = data[:-2] + b"\0" * 9 + data[-2:]
    Image.open(io.BytesIO(broken)).load()
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(broken)
    return broken


BAD = {"undecodable": [b"", b"no image", b"\xff\xd8\xff\xe0", encode(np.zeros((40, 40, 3), np.uint8))[:300],
                       encode(np.zeros((40, 40, 3), np.uint8), "png")[:60], damaged_but_rescuable()],
       "too many pixels": [encode(np.zeros((300, 200, 3), np.uint8)), encode(np.zeros((300, 200, 3), np.uint8), "png")]}


@pytest.mark.parametrize(("reason", "image"), [(r, image) for r, images in BAD.items() for image in images])
def test_a_bad_sample_is_replaced_by_a_mate_of_weight_0(reason: str, image: bytes, row: dict,
                                                        make_plan: MakePlan) -> None:
    good = {s["sample_id"]: s for s in transformed([row], make_plan)[0]}
    lost = row["sample_ids"][1]
    row["images"][1] = image
    samples, bad = transformed([row], make_plan, max_pixels=50_000)
    assert [[b["reason"] for b in group] for group in bad] == [[reason]]
    replaced = [s for s in samples if s["weight"] == [0]]
    assert len(replaced) == 1 and lost not in {s["sample_id"] for s in samples}
    mate = good[replaced[0]["sample_id"]]
    assert replaced[0] == {**mate, "weight": [0]}
    assert [s for s in samples if s["weight"] == [1]] == [s for i, s in good.items() if i != lost]


def test_a_sample_without_captions_is_bad(row: dict, make_plan: MakePlan) -> None:
    row["captions"][0] = []
    assert transformed([row], make_plan)[1] == [[{"sample_id": row["sample_ids"][0], "reason": "no caption"}]]


def test_a_group_without_a_good_member_becomes_blank(row: dict, make_plan: MakePlan) -> None:
    row["images"] = [b"x"] * SIZE
    samples, bad = transformed([row], make_plan)
    assert [b["reason"] for b in bad[0]] == ["undecodable"] * SIZE
    for sample in samples:
        assert sample["weight"] == [0] and set(sample["pixels"]) == {128} and sample["image_class"] == [-1]
        assert set(sample["mlm_labels"]) == {-100}


def test_captions_are_drawn_without_replacement_where_there_are_enough(row: dict, make_plan: MakePlan) -> None:
    row["captions"] = [[f"{a} {b}" for a in ("red", "blue", "cat") for b in ("dog", "face")]] * SIZE
    seen = set()
    for epoch in range(30):
        for sample in transformed([row], make_plan, epoch=epoch, captions=4)[0]:
            assert len(set(sample["caption_class"])) == 4
            seen |= set(sample["caption_class"])
    assert len(seen) == 6
    few = transformed([row], make_plan, captions=8)[0]
    assert all(len(s["caption_class"]) == 8 for s in few)


def test_two_draws_of_one_caption_have_masks_of_their_own(row: dict, make_plan: MakePlan) -> None:
    row["captions"] = [["red blue cat dog umbrella face"]] * SIZE
    samples = transformed([row], make_plan, captions=6, mask_rate=0.5)[0]
    assert all(len({tuple(labels) for labels in np.reshape(s["mlm_labels"], (6, 8)).tolist()}) > 1 for s in samples)


def test_without_a_crop_images_are_only_resized(row: dict, make_plan: MakePlan) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    row["images"] = [encode(image, "png")] * SIZE
    for sample in transformed([row], make_plan, crop_scale=1.0, flip=False)[0]:
        assert sample["pixels"] == image.transpose(2, 0, 1).ravel().tolist()


def test_the_transform_needs_neither_torch_nor_ray_train() -> None:
    code = ("import sys, pipelines.feed.transform, pipelines.feed.stream; "
            "assert not {'torch', 'ray.train'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_member_order_is_the_groups_own(row: dict, make_plan: MakePlan) -> None:
    expected = generator("members of a group", 7, 3, row["group_id"]).permutation(SIZE)
    samples = transformed([row], make_plan, epoch=3)[0]
    assert [s["sample_id"] for s in samples] == [row["sample_ids"][i] for i in expected]
