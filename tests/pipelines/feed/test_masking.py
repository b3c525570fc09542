"""MLM masks: their rates, what is never masked, whole words, and that they are pure."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ashnets.processing import Tokenizer
from pipelines.feed.masking import DRAWS, IGNORED, mask_tokens


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(str(tokenizer_file), 40)


LONG = " ".join(["red unbelievable running cat"] * 5)


def masks(tokenizer: Tokenizer, text: str, rate: float, whole_word: bool, times: int) -> tuple[np.ndarray, ...]:
    ids, attended = tokenizer([text] * times)
    draws = np.random.default_rng(0).random((times, DRAWS, ids.shape[1]))
    return ids[0], *mask_tokens(ids, attended, tokenizer, rate, whole_word, draws)


def test_rates_are_the_papers(tokenizer: Tokenizer) -> None:
    ids, masked, labels = masks(tokenizer, LONG, 0.3, False, 3000)
    ordinary = ~tokenizer.special[ids]
    chosen = labels != IGNORED
    assert chosen[:, ordinary].mean() == pytest.approx(0.3, abs=0.01)
    assert (masked[chosen] == tokenizer.mask_id).mean() == pytest.approx(0.8, abs=0.01)
    kept = masked[chosen] == labels[chosen]
    repeats = 1 / len(tokenizer.ordinary_ids)  # a random word may be the word itself
    assert kept.mean() == pytest.approx(0.1 + 0.1 * repeats, abs=0.01)


def test_special_tokens_are_never_touched_nor_drawn(tokenizer: Tokenizer) -> None:
    ids, masked, labels = masks(tokenizer, LONG + " zzz", 0.9, False, 500)
    special = tokenizer.special[ids]
    assert special.sum() >= 4 and tokenizer._tokenizer.token_to_id("[UNK]") in ids
    assert (labels[:, special] == IGNORED).all() and (masked[:, special] == ids[special]).all()
    drawn = np.unique(masked[:, ~special])
    assert tokenizer.special[drawn].sum() == 1 and tokenizer.mask_id in drawn


def test_labels_give_the_caption_back(tokenizer: Tokenizer) -> None:
    ids, masked, labels = masks(tokenizer, LONG, 0.5, False, 50)
    assert (np.where(labels == IGNORED, masked, labels) == ids).all()


def test_one_token_at_least_is_predicted_where_there_is_any(tokenizer: Tokenizer) -> None:
    for whole_word in (False, True):
        _, _, labels = masks(tokenizer, "cat", 0.0, whole_word, 20)
        assert ((labels != IGNORED).sum(axis=1) == 1).all()
        ids, masked, labels = masks(tokenizer, "", 0.9, whole_word, 5)
        assert (labels == IGNORED).all() and (masked == ids).all()


def test_whole_words_are_predicted_together(tokenizer: Tokenizer) -> None:
    ids, _, labels = masks(tokenizer, LONG, 0.3, True, 500)
    chosen = labels != IGNORED
    continued = tokenizer.continues_word[ids]
    assert continued.sum() == 15
    assert (chosen[:, continued] == chosen[:, np.flatnonzero(continued) - 1]).all()
    starts = ~tokenizer.special[ids] & ~continued
    assert chosen[:, starts].mean() == pytest.approx(0.3, abs=0.02)
    _, _, single = masks(tokenizer, LONG, 0.3, False, 100)
    assert ((single != IGNORED)[:, continued] != (single != IGNORED)[:, np.flatnonzero(continued) - 1]).any()


def test_a_caption_has_the_masks_of_its_own_draws(tokenizer: Tokenizer) -> None:
    ids, attended = tokenizer([LONG, "cat", "", "a dog running"])
    draws = np.random.default_rng(1).random((4, DRAWS, ids.shape[1]))
    for whole_word in (False, True):
        together = mask_tokens(ids, attended, tokenizer, 0.3, whole_word, draws)
        for i in range(4):
            alone = mask_tokens(ids[i:i + 1], attended[i:i + 1], tokenizer, 0.3, whole_word, draws[i:i + 1])
            assert all(np.array_equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))


def test_the_one_token_at_least_is_any_of_them_alike(tokenizer: Tokenizer) -> None:
    _, _, labels = masks(tokenizer, "red blue cat dog", 0.0, False, 4000)
    shares = (labels != IGNORED).mean(axis=0)
    assert shares[shares > 0] == pytest.approx(np.full(4, 0.25), abs=0.03)
