"""Counter-based random numbers: the same bits for the same (seed, stream, step) everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["RandomBits", "hash_bits", "uniform"]

U64 = NDArray[np.uint64]

_GOLD = np.uint64(0x9E3779B97F4A7C15)
_ONE = np.uint64(1)


class RandomBits:
    """A stream of uniform 64-bit words, fixed by its key.

    Only raw words are used: unlike the distributions of ``numpy.random.Generator`` they are
    guaranteed to stay the same from one NumPy release to the next.
    """

    def __init__(self, key: Sequence[int]) -> None:
        self._source = np.random.SFC64(np.random.SeedSequence(list(key)))

    def __call__(self, *shape: int) -> U64:
        count = 1
        for size in shape:
            count *= size
        return self._source.random_raw(count).astype(np.uint64, copy=False).reshape(shape)


def uniform(bits: U64) -> NDArray[np.float64]:
    """Words -> floats in the open interval (0, 1)."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def hash_bits(ids: NDArray[np.int64], salt: int | NDArray[np.int64]) -> U64:
    """A fixed random word for each id (splitmix64), another one for each salt; broadcasts."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        z = ids.astype(np.uint64) + (np.asarray(salt).astype(np.uint64) + _ONE) * _GOLD
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z
