"""Index arithmetic for batchers: the C++ helpers of `mtlfast._C`, and their NumPy equivalents.

`offsets_from_lengths` and `gather_ranges` are the C++ ones where the native part is installed and
the NumPy ones below elsewhere; the tests hold both to the same results and the same errors.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mtlfast import _extension

Int64Array = NDArray[np.int64]


def offsets_from_lengths(lengths: Int64Array) -> Int64Array:
    """Offsets ``[S + 1]`` of segments of ``lengths`` ``[S]``: 0, then the running sums.

    Raises:
        ValueError: ``lengths`` is not a one-dimensional int64 array, or one is negative.
    """
    module = _extension.native()
    if module is None:
        return numpy_offsets_from_lengths(lengths)
    offsets: Int64Array = module.offsets_from_lengths(lengths)
    return offsets


def gather_ranges(
    values: Int64Array, starts: Int64Array, ends: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Concatenates ``values[starts[i]:ends[i]]`` for every ``i``.

    Ranges may overlap, repeat, be empty and come in any order. The copy runs without the GIL.

    Args:
        values: int64 ``[N]``, any stride.
        starts: int64 ``[S]``, ``0 <= starts[i] <= ends[i]``.
        ends: int64 ``[S]``, ``ends[i] <= N``.

    Returns:
        The gathered values, int64 ``[sum(ends - starts)]``, and their offsets, int64 ``[S + 1]``.

    Raises:
        ValueError: an argument is not a one-dimensional int64 array, ``starts`` and ``ends`` differ
            in length, or a range is not inside ``values``; the text names argument and index.
    """
    module = _extension.native()
    if module is None:
        return numpy_gather_ranges(values, starts, ends)
    gathered: tuple[Int64Array, Int64Array] = module.gather_ranges(values, starts, ends)
    return gathered


def numpy_offsets_from_lengths(lengths: Int64Array) -> Int64Array:
    """`offsets_from_lengths` in NumPy."""
    _check("lengths", lengths)
    if len(negative := np.flatnonzero(lengths < 0)):
        _fail("lengths", "no negative length", _at("lengths", lengths, negative[0]))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def numpy_gather_ranges(
    values: Int64Array, starts: Int64Array, ends: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """`gather_ranges` in NumPy: every output element knows its range, and from that its source."""
    for name, array in (("values", values), ("starts", starts), ("ends", ends)):
        _check(name, array)
    if len(starts) != len(ends):
        _fail("ends", f"as many elements as starts ({len(starts)})", str(len(ends)))
    wrong = np.flatnonzero((starts < 0) | (ends < starts) | (ends > len(values)))
    if len(wrong):
        i = wrong[0]
        if starts[i] < 0:
            _fail("starts", "no negative index", _at("starts", starts, i))
        if ends[i] < starts[i]:
            found = f"{_at('ends', ends, i)} with {_at('starts', starts, i)}"
            _fail("ends", "ends[i] >= starts[i]", found)
        _fail("ends", f"at most len(values) = {len(values)}", _at("ends", ends, i))
    lengths = ends - starts
    offsets = numpy_offsets_from_lengths(lengths)
    source = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return values[source], offsets


def _check(name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        _fail(name, "a NumPy array", type(array).__name__)
    if array.dtype != np.int64:
        _fail(name, "dtype int64", str(array.dtype))
    if array.ndim != 1:
        _fail(name, "one dimension", f"{array.ndim} dimensions")


def _at(name: str, array: Int64Array, i: np.intp) -> str:
    return f"{name}[{i}] = {array[i]}"


def _fail(name: str, expected: str, found: str) -> NoReturn:
    raise ValueError(f"{name}: expected {expected}, found {found}")
