"""MLM's masks as a pure function (BERT, Devlin et al. 2019, section 3.1; whole words as in its later release)."""
from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ashnets.processing import Tokenizer

IGNORED = -100
DRAWS = 3
"""Random numbers that a token needs: whether it is predicted, what becomes of it then, and the random word."""


def mask_tokens(input_ids: Int64[ndarray, "C L"], attention_mask: Int64[ndarray, "C L"], tokenizer: Tokenizer,
                rate: float, whole_word: bool, draws: Float64[ndarray, "C 3 L"],
                ) -> tuple[Int64[ndarray, "C L"], Int64[ndarray, "C L"]]:
    """Masked ids and labels (-100 where nothing is predicted) of captions, given uniform `draws` in [0, 1).

    Each token that is no special token is predicted with probability `rate`, and one at least where there is any;
    under `whole_word` all pieces of a word together. Of the predicted ones 80 % become [MASK], 10 % a random word,
    10 % stay.
    """
    predicted, fate, word = draws.swapaxes(0, 1)
    candidates = (attention_mask == 1) & ~tokenizer.special[input_ids]
    if whole_word:
        starts = candidates & ~tokenizer.continues_word[input_ids]
        predicted = np.take_along_axis(predicted, np.maximum(np.cumsum(starts, axis=1) - 1, 0), axis=1)
    predicted = np.where(candidates, predicted, np.inf)
    # The least of all draws is below `rate` wherever any is, so taking it too only matters where none would be.
    chosen = candidates & ((predicted < rate) | (predicted == predicted.min(axis=1, keepdims=True)))
    words = tokenizer.ordinary_ids[(word * len(tokenizer.ordinary_ids)).astype(np.int64)]
    masked = np.where(fate < 0.8, tokenizer.mask_id, np.where(fate < 0.9, words, input_ids))
    return np.where(chosen, masked, input_ids), np.where(chosen, input_ids, IGNORED)
