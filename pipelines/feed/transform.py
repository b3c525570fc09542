"""Rows of the stream to arrays: decode, augment, draw captions, tokenise, mask (no torch; runs in Ray Data's tasks).

What becomes of a sample depends on (seed, epoch, sample id) alone, so it is the same on any machine and after any
restart. A bad sample never raises: it is replaced by a mate of its group with weight 0, since a blank image would
pollute tdBN's statistics and the membranes of its followers.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from numpy import ndarray

from ashnets.processing import BadSample, caption_class
from pipelines.feed.augment import training_pixels
from pipelines.feed.masking import DRAWS, mask_tokens
from pipelines.feed.order import generator
from pipelines.feed.plan import FeedPlan
from pipelines.feed.sample_random import sample_generator

BLANK_CLASS = -1
ARRAYS = {"pixels": np.uint8, "input_ids": np.int64, "attention_mask": np.int64, "mlm_input_ids": np.int64,
          "mlm_labels": np.int64, "image_class": np.int64, "caption_class": np.int64, "weight": np.float32}
"""The array columns of a transformed block: one fixed-size binary value a group, of this type of number."""


class Sample(NamedTuple):
    """One member of a group, ready for the model but for its tokens."""

    sample_id: str
    pixels: UInt8[ndarray, "S S 3"]
    captions: tuple[str, ...]
    image_class: int
    weight: float


def transform_block(block: pa.Table, plan: FeedPlan) -> pa.Table:
    """Raw rows (see pipelines/feed/source.py) to array columns; one row stays one group."""
    cv2.setNumThreads(1)
    size = plan.store().size
    arrays = _empty_arrays(block.num_rows, size, plan)
    sample_ids, bad, captions = [], [], []
    for i, row in enumerate(block.to_pylist()):
        samples, replaced = group_samples(row, plan, size)
        _write_images({name: array[i] for name, array in arrays.items()}, samples)
        captions += [(row["epoch"], sample.sample_id, sample.captions) for sample in samples]
        sample_ids.append([sample.sample_id for sample in samples])
        bad.append(replaced)
    _write_captions(arrays, captions, plan)
    columns = {name: block[name] for name in ("position", "epoch", "group_id")}
    columns["sample_ids"] = pa.array(sample_ids, pa.list_(pa.string()))
    columns["bad"] = pa.array(bad, pa.list_(pa.struct([("sample_id", pa.string()), ("reason", pa.string())])))
    return pa.table(columns | {name: _binary_column(array) for name, array in arrays.items()})


def group_samples(row: dict[str, Any], plan: FeedPlan, size: int) -> tuple[list[Sample], list[dict[str, str]]]:
    """The `size` members of one group in this epoch's order, and those that were bad: `sample_id`, `reason`."""
    if row["position"] < 0:
        return [_blank(plan)] * size, []
    order = generator("members of a group", plan.seed, row["epoch"], row["group_id"]).permutation(size)
    samples: list[Sample | None] = []
    bad = []
    for member in order:
        try:
            samples.append(_sample(row, int(member), plan))
        except BadSample as error:
            samples.append(None)
            bad.append({"sample_id": row["sample_ids"][member], "reason": error.reason})
    return [sample or _mate(samples, i, plan) for i, sample in enumerate(samples)], bad


def _sample(row: dict[str, Any], member: int, plan: FeedPlan) -> Sample:
    sample_id, captions = row["sample_ids"][member], row["captions"][member]
    if not captions:
        raise BadSample("no caption", sample_id)
    feed, key = plan.feed, (plan.seed, row["epoch"], sample_id)
    pixels = training_pixels(row["images"][member], captions, feed, plan.max_pixels,
                             sample_generator("augmentation", *key))
    return Sample(sample_id, pixels, _draw_captions(captions, feed.captions, key), row["image_classes"][member],
                  float(row["real"][member] and plan.counts(row["position"])))


def _draw_captions(captions: list[str], count: int, key: tuple[int, int, str]) -> tuple[str, ...]:
    """`count` of a sample's captions, different ones where there are as many."""
    if len(captions) == 1:
        return (captions[0],) * count
    random = sample_generator("captions", *key)
    enough = len(captions) >= count
    draw = random.permutation(len(captions))[:count] if enough else random.integers(len(captions), size=count)
    return tuple(captions[i] for i in draw)


def _mate(samples: list[Sample | None], index: int, plan: FeedPlan) -> Sample:
    """The next good member of the group, with weight 0."""
    for step in range(1, len(samples)):
        mate = samples[(index + step) % len(samples)]
        if mate is not None:
            return mate._replace(weight=0.0)
    return _blank(plan)


def _blank(plan: FeedPlan) -> Sample:
    """A grey image without words, of weight 0: padding, and groups without one good member."""
    pixels = np.full((plan.feed.image_size, plan.feed.image_size, 3), 128, dtype=np.uint8)
    return Sample("", pixels, ("",) * plan.feed.captions, BLANK_CLASS, 0.0)


def _empty_arrays(rows: int, size: int, plan: FeedPlan) -> dict[str, ndarray]:
    """A block's arrays [rows, samples of a group, ...], not filled yet."""
    side, captions = plan.feed.image_size, plan.feed.captions
    tokens = (captions, plan.max_tokens)
    shapes = {"pixels": (3, side, side), "input_ids": tokens, "attention_mask": tokens, "mlm_input_ids": tokens,
              "mlm_labels": tokens, "image_class": (), "caption_class": (captions,), "weight": ()}
    return {name: np.empty((rows, size, *shapes[name]), kind) for name, kind in ARRAYS.items()}


def _write_images(out: dict[str, ndarray], samples: list[Sample]) -> None:
    """Write the images of one group to where they stay: copying them is a good part of what a block costs."""
    for m, sample in enumerate(samples):
        cv2.split(sample.pixels, list(out["pixels"][m]))  # into these planes, in a third of NumPy's time
        out["image_class"][m], out["weight"][m] = sample.image_class, sample.weight


def _write_captions(out: dict[str, ndarray], captions: list[tuple[int, str, tuple[str, ...]]], plan: FeedPlan) -> None:
    """Tokenise and mask the captions of a block, all at once: each sample's epoch, id and captions."""
    tokenizer = plan.load_tokenizer()
    texts = [text for _, _, drawn in captions for text in drawn]
    ids, attended = tokenizer(texts)
    draws = np.stack([sample_generator("mlm", plan.seed, epoch, sample_id, k).random((DRAWS, plan.max_tokens))
                      for epoch, sample_id, drawn in captions for k in range(len(drawn))])
    masked, labels = mask_tokens(ids, attended, tokenizer, plan.mask_rate, plan.whole_word, draws)
    classes = np.array([caption_class(text) for text in texts])
    for name, values in {"input_ids": ids, "attention_mask": attended, "mlm_input_ids": masked, "mlm_labels": labels,
                         "caption_class": classes}.items():
        out[name][:] = values.reshape(out[name].shape)


def _binary_column(values: ndarray) -> pa.FixedSizeBinaryArray:
    """One fixed-size binary value a row, without a copy."""
    width = values.nbytes // len(values)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])


def array_column(block: pa.Table, name: str) -> ndarray:
    """The numbers of an array column [rows, numbers of a row], without a copy where the block is in one piece."""
    chunked = block[name]
    column = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    width = column.type.byte_width
    values = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return values.view(ARRAYS[name]).reshape(len(column), -1)
