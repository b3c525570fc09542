"""The scenes source: pure function of (seed, split, index), true captions, and no unseen emoji anywhere."""
from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from pipelines.sources.emoji import emoji_of_split
from pipelines.sources.record import Sample
from pipelines.sources.scenes import BACKGROUNDS, Placed, ScenesSource, captions_of, make_scene, relation, scene_emoji

REPOSITORY = Path(__file__).resolve().parents[3]


def read_all(source: ScenesSource) -> list[Sample]:
    return [sample for part in range(source.parts) for sample in source.read(part)]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return read_all(ScenesSource(train=4096, val=512))


def mentioned(caption: str, names: list[str]) -> list[str]:
    return [name for name in names if re.search(rf"\b{name}\b", caption)]


@pytest.mark.parametrize("seed", range(8))
def test_scenes_are_made_of_80_training_emoji_whose_names_share_no_word(seed: int) -> None:
    chosen = scene_emoji(seed)
    words = [word for emoji in chosen for word in emoji.name.split()]
    assert len(chosen) == 80 and len(words) == len(set(words))
    assert all(len(emoji.name.split()) <= 2 for emoji in chosen)
    unseen = {emoji.on_white().tobytes() for emoji in emoji_of_split("unseen", seed)}
    assert unseen.isdisjoint(emoji.on_white().tobytes() for emoji in chosen)


def test_no_unseen_emoji_stands_in_any_scene(samples: list[Sample]) -> None:
    unseen = {emoji.code for emoji in emoji_of_split("unseen", 0)}
    unseen_pictures = {emoji.picture for emoji in emoji_of_split("unseen", 0)}
    picture = {emoji.code: emoji.picture for split in ("train", "unseen") for emoji in emoji_of_split(split, 0)}
    used = {placed["emoji"] for sample in samples for placed in sample.metadata["layout"]["objects"]}
    assert len(used) == 80
    assert used.isdisjoint(unseen)
    assert unseen_pictures.isdisjoint(picture[code] for code in used)


def test_every_caption_names_exactly_the_objects_of_its_scene(samples: list[Sample]) -> None:
    names = [emoji.name for emoji in scene_emoji(0)]
    for sample in samples[::7]:
        objects = sorted(placed["name"] for placed in sample.metadata["layout"]["objects"])
        assert len(sample.captions) == 4
        for caption in sample.captions:
            assert sorted(mentioned(caption, names)) == objects, caption
        background = sample.metadata["layout"]["background"]
        assert all(f"{background} background" in sample.captions[i] for i in (1, 3))


def test_relations_are_true_of_the_layout(samples: list[Sample]) -> None:
    checked = 0
    for sample in samples[:1500]:
        centre = {o["name"]: (o["x"] + o["size"] / 2, o["y"] + o["size"] / 2)
                  for o in sample.metadata["layout"]["objects"]}
        if len(centre) < 2:
            continue
        first, rest = re.fullmatch(r"the (.+?) ((?:above|below|left of|right of) the .+)", sample.captions[2]).groups()
        for word, other in re.findall(r"(above|below|left of|right of) the (.+?)(?= and |$)", rest):
            right, down = np.subtract(centre[first], centre[other])
            signed = {"above": -down, "below": down, "left of": -right, "right of": right}
            assert signed[word] >= max(signed.values()) - 2e-4, sample.captions[2]
            checked += 1
    assert checked > 1500


@pytest.mark.parametrize("dx,dy,expected", [(.3, .1, "right of"), (-.3, .1, "left of"), (.1, .3, "below"),
                                            (.1, -.3, "above")])
def test_relation_takes_the_axis_on_which_they_lie_further_apart(dx: float, dy: float, expected: str) -> None:
    thing = scene_emoji(0)[0]
    assert relation(Placed(thing, .4 + dx, .4 + dy, .1), Placed(thing, .4, .4, .1)) == expected


def test_the_pixels_show_the_layout(samples: list[Sample]) -> None:
    for index in range(40):
        scene = make_scene(0, "train", index)
        image = scene.draw(64).astype(int)
        shown = np.abs(image - BACKGROUNDS[scene.background]).max(axis=2) > 8
        inside = np.zeros((64, 64), bool)
        for o in scene.objects:
            box = np.s_[round(o.y * 64) - 1:round((o.y + o.size) * 64) + 1,
                        max(round(o.x * 64) - 1, 0):round((o.x + o.size) * 64) + 1]
            box = (slice(max(box[0].start, 0), box[0].stop), box[1])
            inside[box] = True
            assert shown[box].mean() > .08, (index, o.emoji.name)
        assert not (shown & ~inside).any()
        stored = simplejpeg.decode_jpeg(samples[index].image)
        assert stored.shape == (64, 64, 3) and np.abs(stored - image).mean() < 4


def test_objects_are_a_third_to_a_half_of_the_side_and_overlap_little() -> None:
    counts = np.zeros(4)
    overlaps = []
    for index in range(500):
        objects = make_scene(3, "train", index).objects
        counts[len(objects)] += 1
        masks = []
        for o in objects:
            assert 1 / 3 <= o.size <= 1 / 2 and 0 <= o.x <= 1 - o.size and 0 <= o.y <= 1 - o.size
            mask = np.zeros((200, 200), bool)
            mask[round(o.y * 200):round((o.y + o.size) * 200), round(o.x * 200):round((o.x + o.size) * 200)] = True
            masks.append(mask)
        overlaps += [(a & b).sum() / min(a.sum(), b.sum()) for i, a in enumerate(masks) for b in masks[:i]]
        assert len({o.emoji.code for o in objects}) == len(objects)
    assert counts[0] == 0 and counts[1] < 100 and counts[2] > 150 and counts[3] > 200
    assert np.mean(overlaps) < .03 and max(overlaps) < .35


def test_a_scene_does_not_depend_on_how_many_there_are_or_which_process_makes_it(samples: list[Sample]) -> None:
    alone = {sample.sample_id: sample for sample in read_all(ScenesSource(train=600, val=3))}
    every = {sample.sample_id: sample for sample in samples}
    assert len(alone) == 603 and all(every[key] == sample for key, sample in alone.items())

    program = ("from pipelines.sources.scenes import ScenesSource; import hashlib\n"
               "s = list(ScenesSource(600, 3).read(1))[10]\n"
               "print(s.sample_id, hashlib.sha256(s.image).hexdigest(), s.captions)")
    answer = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True,
                            env={**os.environ, "PYTHONHASHSEED": "123"}).stdout.strip()
    sample = every["scenes/train/000522"]
    assert answer == f"{sample.sample_id} {hashlib.sha256(sample.image).hexdigest()} {sample.captions}"


def test_seeds_and_splits_differ_and_no_held_out_picture_is_in_training(samples: list[Sample]) -> None:
    images = {split: {s.image for s in samples if s.split == split} for split in ("train", "val")}
    assert len(images["train"]) == 4096 and len(images["val"]) == 512
    assert images["train"].isdisjoint(images["val"])
    other = read_all(ScenesSource(train=50, val=0, seed=1))
    assert len(other) == 50 and images["train"].isdisjoint(s.image for s in other)


def test_few_captions_of_the_held_out_scenes_repeat(samples: list[Sample]) -> None:
    captions = [caption for s in samples if s.split == "val" for caption in s.captions]
    assert len(set(captions)) > .97 * len(captions)


def test_the_same_scene_at_another_size_shows_the_same(samples: list[Sample]) -> None:
    large = next(iter(ScenesSource(train=1, val=0, side=256).read(0)))
    assert large.captions == samples[0].captions and large.metadata == samples[0].metadata
    image = simplejpeg.decode_jpeg(large.image).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(image - simplejpeg.decode_jpeg(samples[0].image)).mean() < 6


def test_a_scene_of_one_object_says_where_it_is() -> None:
    scene = next(s for s in (make_scene(0, "train", i) for i in range(100)) if len(s.objects) == 1)
    where = captions_of(scene, random.Random(0))[2]
    assert re.fullmatch(rf"the {scene.objects[0].emoji.name} (in the middle|at the (top|bottom|left|right).*)", where)


def test_a_side_too_small_to_see_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="data.scene_size=16"):
        ScenesSource(side=16)
