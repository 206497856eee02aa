"""The NumPy-facing helpers: C++ and NumPy agree on results and on errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlfast import _extension, _ranges

needs_native = pytest.mark.skipif(
    not _extension.cpu_ops_available(), reason="mtlfast was installed without its C++ part"
)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@st.composite
def ranges(draw):
    size = draw(st.integers(0, 40))
    pairs = draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), max_size=30))
    ordered = [sorted(pair) for pair in pairs]
    return size, ints(*(a for a, _ in ordered)), ints(*(b for _, b in ordered))


@needs_native
@given(ranges(), st.sampled_from([1, 2, -1]))
def test_gather_ranges_is_the_concatenation_of_slices(case, stride):
    size, starts, ends = case
    values = np.arange(100, 100 + 2 * size, dtype=np.int64)[::stride][:size]
    expected = [values[a:b] for a, b in zip(starts, ends, strict=True)]
    expected = np.concatenate([ints(), *expected])
    for function in (_ranges.gather_ranges, _ranges.numpy_gather_ranges):
        gathered, offsets = function(values, starts, ends)
        np.testing.assert_array_equal(gathered, expected)
        np.testing.assert_array_equal(offsets, np.concatenate([[0], np.cumsum(ends - starts)]))
        assert gathered.dtype == offsets.dtype == np.int64


@needs_native
@given(st.lists(st.integers(0, 2**40), max_size=30))
def test_offsets_from_lengths(lengths):
    expected = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    for function in (_ranges.offsets_from_lengths, _ranges.numpy_offsets_from_lengths):
        assert function(ints(*lengths)).tolist() == expected


def test_gather_ranges_without_ranges():
    values, offsets = _ranges.gather_ranges(ints(), ints(), ints())
    assert values.tolist() == []
    assert offsets.tolist() == [0]


V = np.arange(10, dtype=np.int64)
BAD_RANGES = [
    ((V, ints(0), ints(11)), "ends: expected at most len(values) = 10, found ends[0] = 11"),
    ((V, ints(0, -1), ints(1, 1)), "starts: expected no negative index, found starts[1] = -1"),
    ((V, ints(3), ints(2)), "ends: expected ends[i] >= starts[i], found ends[0] = 2 with starts"),
    ((V, ints(0, 1), ints(1)), "ends: expected as many elements as starts (2), found 1"),
    ((V, ints(0), ints(-(2**63))), "ends: expected ends[i] >= starts[i]"),
    ((V, ints(2**63 - 1), ints(2**63 - 1)), "ends: expected at most len(values) = 10"),
    (([1, 2], ints(0), ints(1)), "values: expected a NumPy array, found list"),
    ((V.astype(np.int32), ints(0), ints(1)), "values: expected dtype int64, found int32"),
    ((V, ints(0).astype(float), ints(1)), "starts: expected dtype int64, found float64"),
    ((V, ints(0), ints(1).astype(np.uint64)), "ends: expected dtype int64, found uint64"),
    ((V.reshape(5, 2), ints(0), ints(1)), "values: expected one dimension, found 2 dimensions"),
    ((V, np.int64(0), ints(1)), "starts: expected a NumPy array, found int64"),
]


@needs_native
@pytest.mark.parametrize(("arguments", "text"), BAD_RANGES)
@pytest.mark.parametrize("name", ["gather_ranges", "numpy_gather_ranges"])
def test_gather_ranges_names_what_is_wrong(name, arguments, text):
    with pytest.raises(ValueError) as error:
        getattr(_ranges, name)(*arguments)
    assert str(error.value).startswith(text)


@needs_native
@pytest.mark.parametrize("name", ["offsets_from_lengths", "numpy_offsets_from_lengths"])
def test_offsets_from_lengths_names_what_is_wrong(name):
    with pytest.raises(
        ValueError, match=r"lengths: expected no negative length, found lengths\[1\]"
    ):
        getattr(_ranges, name)(ints(1, -1))


@needs_native
def test_offsets_that_overflow_are_an_error():
    with pytest.raises(ValueError, match="lengths: expected a sum that fits into int64"):
        _ranges.offsets_from_lengths(ints(2**62, 2**62))


@needs_native
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
)
def test_malformed_ranges_never_touch_foreign_memory(starts, ends):
    """Either the same error as NumPy's, or the same result."""

    def outcome(function):
        try:
            return [part.tolist() for part in function(V, ints(*starts), ints(*ends))]
        except ValueError as error:
            return str(error)

    assert outcome(_ranges.gather_ranges) == outcome(_ranges.numpy_gather_ranges)
