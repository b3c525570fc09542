"""MLM's masks as a pure function (BERT, Devlin et al. 2019, section 3.1; whole words as in its later release)."""
from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from ashnets.processing import Tokenizer

IGNORED = -100


def mask_tokens(input_ids: Int64[ndarray, " L"], attention_mask: Int64[ndarray, " L"], tokenizer: Tokenizer,
                rate: float, whole_word: bool, random: np.random.Generator,
                ) -> tuple[Int64[ndarray, " L"], Int64[ndarray, " L"]]:
    """Masked ids and labels (-100 where nothing is predicted) of one caption.

    Each token that is no special token is predicted with probability `rate`, and one at least where there is any;
    under `whole_word` all pieces of a word together. Of the predicted ones 80 % become [MASK], 10 % a random word,
    10 % stay.
    """
    candidates = (attention_mask == 1) & ~tokenizer.special[input_ids]
    starts = candidates & ~tokenizer.continues_word[input_ids] if whole_word else candidates
    unit = np.cumsum(starts) - 1
    chosen = candidates & _choose(int(starts.sum()), rate, random)[unit]
    labels = np.where(chosen, input_ids, IGNORED)
    fate = random.random(len(input_ids))
    words = tokenizer.ordinary_ids[random.integers(len(tokenizer.ordinary_ids), size=len(input_ids))]
    masked = np.where(fate < 0.8, tokenizer.mask_id, np.where(fate < 0.9, words, input_ids))
    return np.where(chosen, masked, input_ids), labels


def _choose(units: int, rate: float, random: np.random.Generator) -> Bool[ndarray, " U"]:
    """Which of the units are predicted: never none of them. One spare False stands for `no unit`."""
    if units == 0:
        return np.zeros(1, dtype=bool)
    chosen = random.random(units) < rate
    if not chosen.any():
        chosen[random.integers(units)] = True
    return chosen
