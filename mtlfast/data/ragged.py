"""Collecting ranges of a flat array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlfast import _extension

__all__ = ["gather_ranges"]

Ints = NDArray[np.int64]


def gather_ranges(values: Ints, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Concatenate ``values[starts[i]:ends[i]]``.

    Args:
        values: int64 ``[n]``.
        starts, ends: int64 ``[S]`` with ``0 <= starts <= ends <= n``.

    Returns:
        the values ``[N]``, and int64 offsets ``[S + 1]``.
    """
    native = _extension.native()
    if native is not None:
        return native.gather_ranges(values, starts, ends)
    lengths = ends - starts
    offsets = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return values[index], offsets
