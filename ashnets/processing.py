"""Images and captions to arrays, the same in training and evaluation: decode, resize, tokenise (no torch import)."""
from __future__ import annotations

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
import tokenizers
from jaxtyping import Bool, Int64, UInt8
from numpy import ndarray
from PIL import Image

from ashnets.resources import hub_file, is_hub_name, resolve

MAX_PIXELS = 64_000_000
_JPEG = b"\xff\xd8\xff"
_OTHER_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112
_BILINEAR_UP_TO = 1.4
"""Images that shrink by no more than this are resized bilinearly: it is then as near to a Lanczos filter's result as
area averaging is, in a sixth of its time (docs/feed.md)."""


class BadSample(ValueError):
    """A sample that cannot be used; `reason` is a short name to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Header(NamedTuple):
    """What an encoded image says of itself: height and width as it will be decoded, and its EXIF orientation."""

    height: int
    width: int
    orientation: int


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an encoded image, without decoding it.

    Raises BadSample where the header cannot be read or claims more than `max_pixels`.
    """
    try:
        if data.startswith(_JPEG):
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        else:
            width, height = _open_other(data).size
    except Exception as error:  # decoders raise a dozen types on damaged input
        raise BadSample("undecodable", str(error)) from error
    if height * width > max_pixels or min(height, width) < 1:
        raise BadSample("too many pixels", f"{width}x{height}, allowed are {max_pixels}")
    orientation = _orientation(data)
    return Header(width, height, orientation) if orientation >= 5 else Header(height, width, orientation)


def decode_image(data: bytes, min_height: int = 0, min_width: int = 0, max_pixels: int = MAX_PIXELS,
                 header: Header | None = None) -> UInt8[ndarray, "H W 3"]:
    """Decode to upright RGB; transparency becomes white.

    A JPEG may come out smaller than it is, by libjpeg's scaled decoding, but not below `min_height` and `min_width`
    (0: full size). A JPEG that libjpeg refuses is bad: no second decoder rescues it. `header` is what `read_header`
    gave, where the caller has it. Raises BadSample.
    """
    height, width, orientation = header or read_header(data, max_pixels)
    least = _decoded_size(height, width, min_height, min_width)
    if orientation >= 5:
        least = least[::-1]
    try:
        if data.startswith(_JPEG):
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1],
                                            buffer=_cached_room(height * width * 3))
        else:
            pixels = rgb(_open_other(data))
    except Exception as error:  # decoders raise a dozen types on damaged input
        raise BadSample("undecodable", str(error)) from error
    return _upright(pixels, orientation)


def resize(image: UInt8[ndarray, "H W 3"], size: int) -> UInt8[ndarray, "S S 3"]:
    """Resize to size x size: bilinear where it grows or shrinks a little, area averaging where it shrinks by more."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    shrinks = min(height, width) > size and height * width > (_BILINEAR_UP_TO * size) ** 2
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def centre_square(image: UInt8[ndarray, "H W 3"]) -> UInt8[ndarray, "S S 3"]:
    """The largest centred square."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top:top + side, left:left + side]


def image_to_pixels(data: bytes, size: int, max_pixels: int = MAX_PIXELS) -> UInt8[ndarray, "3 size size"]:
    """The evaluation preprocessing: decode, centre square, resize. Raises BadSample."""
    return square_pixels(decode_image(data, size, size, max_pixels), size)


def square_pixels(image: UInt8[ndarray, "H W 3"], size: int) -> UInt8[ndarray, "3 size size"]:
    """The evaluation preprocessing behind decoding: centre square, resize, channels first."""
    return np.ascontiguousarray(resize(centre_square(image), size).transpose(2, 0, 1))


def caption_class(text: str) -> int:
    """A stable 63-bit id of a caption's words: case, punctuation and spacing do not count."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(re.findall(r"\w+", normal)) or normal.strip()
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") >> 1


class Tokenizer:
    """A WordPiece tokenizer (tokenizer.json of Hugging Face `tokenizers`) that pads and cuts to `max_tokens`.

    `location` is a folder or file, `package:NAME/path/in/it`, or a name on the Hugging Face hub.
    """

    def __init__(self, location: str, max_tokens: int) -> None:
        if not location:
            raise ValueError("model.text.tokenizer is empty and model.text.init has none beside it: "
                             "name a folder or file with a tokenizer.json, or a repository of the Hugging Face hub")
        self.path = _tokenizer_file(location)
        self.max_tokens = max_tokens
        self._tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        self.pad_id, self.mask_id = self._id("[PAD]"), self._id("[MASK]")
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()  # filling up one array is cheaper than padding every text
        # A caption takes microseconds: threads would cost more, and those of a process that forks are lost.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        vocabulary = self._tokenizer.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        self.special = np.ones(self.vocab_size, dtype=bool)
        self.continues_word = np.zeros(self.vocab_size, dtype=bool)
        for token, index in vocabulary.items():
            self.special[index] = re.fullmatch(r"\[\w+\]", token) is not None
            self.continues_word[index] = token.startswith("##")
        self.ordinary_ids: Int64[ndarray, " V"] = np.flatnonzero(~self.special)

    special: Bool[ndarray, " V"]
    """Which ids are no words: [CLS], [PAD], [unused7], ..."""
    continues_word: Bool[ndarray, " V"]
    """Which ids go on with the word before them (##ing)."""

    def __call__(self, texts: Sequence[str]) -> tuple[Int64[ndarray, "M L"], Int64[ndarray, "M L"]]:
        """Token ids and attention mask of every text."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        lengths = np.array([len(text) for text in tokens], dtype=np.int64)
        attended = np.arange(self.max_tokens) < lengths[:, None]
        ids = np.full(attended.shape, self.pad_id, dtype=np.int64)
        ids[attended] = np.fromiter(chain.from_iterable(tokens), np.int64, lengths.sum())
        return ids, attended.astype(np.int64)

    def _id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(f"{self.path}: the vocabulary has no {token}; a BERT WordPiece tokenizer is needed")
        return index


def _tokenizer_file(location: str) -> Path:
    if is_hub_name(location):
        return hub_file(location, "tokenizer.json", "model.text.tokenizer (or init)")
    path = resolve(location)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: set model.text.tokenizer to a folder with a tokenizer.json")
    return file


def _open_other(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_OTHER_FORMATS)


def rgb(image: Image.Image) -> UInt8[ndarray, "H W 3"]:
    """A PIL image as RGB; transparency becomes white."""
    if image.mode == "I;16":  # grey of 16 bits, which `convert` would cut at 255: white nearly everywhere
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _cached_room(size: int) -> UInt8[ndarray, " size"]:
    """Room for a decoded JPEG that begins 16 bytes behind a multiple of 32.

    libjpeg-turbo writes rows that begin at a multiple past the processor's caches, so that `resize` would have to wait
    for memory: 40 us of 500 an image in the feed (docs/feed.md).
    """
    room = np.empty(size + 31, dtype=np.uint8)
    start = (16 - room.ctypes.data) % 32
    return room[start:start + size]


def _decoded_size(height: int, width: int, min_height: int, min_width: int) -> tuple[int, int]:
    """The size to ask of libjpeg, which scales to eighths while it decodes, (0, 0) for the full one.

    Halves and quarters are taken where `resize` can do the rest bilinearly: libjpeg-turbo has no vector code for the
    other eighths, most of which take longer than all of the image.
    """
    if min_height <= 0 or min_width <= 0:
        return 0, 0
    for factor in (8, 4, 2, 1):
        scaled = -(-height // factor), -(-width // factor)
        if scaled[0] >= min_height and scaled[1] >= min_width:
            near = scaled[0] * scaled[1] <= _BILINEAR_UP_TO**2 * min_height * min_width
            return scaled if near else (min_height, min_width)
    return 0, 0


def _orientation(data: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or it cannot be read."""
    if data.startswith(_JPEG):
        speaks = data.find(b"Exif\x00\x00", 0, 4096) >= 0
    else:  # WebP has it behind the pixels; PIL turns TIFF by itself
        speaks = b"EXIF" in data if data.startswith(b"RIFF") else b"eXIf" in data[:4096]
    if not speaks:
        return 1
    try:
        value = Image.open(io.BytesIO(data), formats=("JPEG", *_OTHER_FORMATS)).getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: UInt8[ndarray, "H W 3"], orientation: int) -> UInt8[ndarray, "H W 3"]:
    """Undo an EXIF orientation (Exif 2.3, tag 274)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
