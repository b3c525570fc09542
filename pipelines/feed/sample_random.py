"""Random numbers of a sample: of (seed, epoch, sample id) and a purpose alone, wherever it is transformed."""
from __future__ import annotations

import hashlib

import numpy as np
from numpy import ndarray
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike


class _Hash(ISeedSequence):
    """The first state of a generator, taken from a hash as it is.

    NumPy's SeedSequence mixes small numbers into good states, which a hash is already, and takes three times as long
    as all the rest of making a generator; a sample needs three.
    """

    def __init__(self, words: ndarray) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> ndarray:
        """Words of the hash: PCG64 asks for four of 64 bits, and that many there are."""
        return self._words[:n_words].astype(dtype, copy=False)


def sample_generator(purpose: str, seed: int, epoch: int, sample_id: str, draw: int = 0) -> np.random.Generator:
    """A random generator for one purpose and one draw of it, the same on every machine and in every process."""
    text = f"{purpose}\x00{seed}\x00{epoch}\x00{draw}\x00{sample_id}"
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=32).digest(), "<u8").astype(np.uint64)
    return np.random.Generator(np.random.PCG64(_Hash(words)))  # type: ignore[arg-type]  # NumPy's stubs leave it out
