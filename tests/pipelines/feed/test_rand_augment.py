"""RandAugment: every operation against torchvision's on PIL images, levels against ALBEF's, draws by the generator."""
from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from pipelines.config import FeedConfig
from pipelines.feed.augment import training_pixels
from pipelines.feed.rand_augment import GREY, OPERATIONS, Operation, apply, level, rand_augment

from .small_stores import encode

TORCHVISION = {"identity": "Identity", "autocontrast": "AutoContrast", "equalize": "Equalize",
               "brightness": "Brightness", "sharpness": "Sharpness", "shear_x": "ShearX", "shear_y": "ShearY",
               "translate_x": "TranslateX", "translate_y": "TranslateY", "rotate": "Rotate"}


def picture(seed: int, height: int = 48, width: int = 48) -> np.ndarray:
    """Smooth colours below a little noise, from 40 to 200, so that every operation has something to change."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(50, 190, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), np.int16)
    return (smooth + random.integers(-10, 11, (height, width, 3))).astype(np.uint8)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("magnitude", [0, 3, 7, 10])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name: Operation, magnitude: int, positive: bool) -> None:
    """Bit for bit; torchvision makes degrees of a slope and a slope of those, which may round one value differently."""
    for seed, shape in enumerate([(48, 48), (224, 224), (31, 31)]):
        image = Image.fromarray(picture(seed, *shape))
        value = level(name, magnitude, positive, shape[0])
        theirs = value - 1 if name in ("brightness", "sharpness") else value  # torchvision counts factors from 1
        expected = _apply_op(image, TORCHVISION[name], theirs, InterpolationMode.BILINEAR, list(GREY))
        difference = np.asarray(apply(image, name, value)).astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= name.startswith("shear") and (difference != 0).mean() < 1e-3


def test_levels_are_albefs() -> None:
    """The table of ALBEF's code at its M = 7 of 10 on its images of 256 pixels."""
    assert {name: round(level(name, 7, True, 256), 6) for name in OPERATIONS} == {
        "identity": 0, "autocontrast": 0, "equalize": 0, "brightness": 1.36, "sharpness": 1.36, "shear_x": 0.21,
        "shear_y": 0.21, "translate_x": 7, "translate_y": 7, "rotate": 21}
    assert level("rotate", 7, False, 256) == -21 and level("brightness", 7, False, 256) == 1.36


def test_operations_are_drawn_evenly_and_applied_half_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[tuple[str, bool]] = Counter()

    def note(image: Image.Image, name: Operation, value: float) -> Image.Image:
        seen[name, value > 0] += 1
        return image

    monkeypatch.setattr("pipelines.feed.rand_augment.apply", note)
    random = np.random.default_rng(0)
    for _ in range(4000):
        rand_augment(picture(0), 2, 7, random)
    assert sum(seen.values()) == pytest.approx(4000, abs=200)
    for name in OPERATIONS:
        assert seen[name, True] + seen[name, False] == pytest.approx(400, abs=80)
        if name.startswith(("shear", "translate", "rotate")):
            assert seen[name, True] == pytest.approx(200, abs=60)


def test_the_generator_alone_decides() -> None:
    image = picture(1)
    first = [rand_augment(image, 2, 7, np.random.default_rng(seed)) for seed in range(20)]
    np.random.seed(5)
    again = [rand_augment(image, 2, 7, np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({array.tobytes() for array in first}) > 10
    assert np.array_equal(image, picture(1)), "the caller's image was written to"


def test_off_draws_nothing_and_changes_nothing() -> None:
    random = np.random.default_rng(0)
    image = picture(2)
    assert rand_augment(image, 0, 7, random) is image
    assert random.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_the_feed_applies_it_behind_the_crop() -> None:
    data = encode(picture(3, 60, 80))
    plain, switched = FeedConfig(image_size=32), FeedConfig(image_size=32, rand_augment=2)
    for seed in range(10):
        random = np.random.default_rng(seed)
        before = training_pixels(data, [], plain, 10**6, random)
        expected = rand_augment(before, 2, 7, random)
        assert np.array_equal(training_pixels(data, [], switched, 10**6, np.random.default_rng(seed)), expected)


def test_nothing_mirrors() -> None:
    """Dark left of bright stays dark left of bright, whatever is drawn."""
    image = np.full((64, 64, 3), 60, np.uint8)
    image[:, 32:] = 180
    for seed in range(300):
        result = rand_augment(image, 3, 10, np.random.default_rng(seed))[24:40]
        assert result[:, 8:16].mean() < result[:, 48:56].mean()


@pytest.mark.parametrize("change", [{"rand_augment": -1}, {"rand_augment_magnitude": 11}])
def test_settings_out_of_range_are_named(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"feed.{next(iter(change))}="):
        FeedConfig(**change)


def test_no_torch() -> None:
    code = "import sys, pipelines.feed.rand_augment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
