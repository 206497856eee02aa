"""Ids that arrive in blocks are counted like ids that arrive at once."""

from __future__ import annotations

import numpy as np
import pytest

from mtlfast.data import vocabulary
from mtlfast.data.vocabulary import IdCounts, Vocabulary


@pytest.mark.parametrize("merge_from", [1, 40, 1 << 20])
@pytest.mark.parametrize("blocks", [1, 3, 50])
def test_blocks_make_no_difference(
    monkeypatch: pytest.MonkeyPatch, merge_from: int, blocks: int
) -> None:
    monkeypatch.setattr(vocabulary, "_MERGE_FROM", merge_from)
    seen = np.random.default_rng(0).zipf(1.3, 2000) % 500 - 7
    counts = IdCounts()
    for block in np.array_split(seen, blocks):
        counts.add(block)
    for min_count in (1, 3, 2001):
        expected = Vocabulary(seen, min_count)
        assert np.array_equal(counts.vocabulary(min_count).ids, expected.ids)


def test_memory_grows_with_the_distinct_ids_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_MERGE_FROM", 100)
    counts = IdCounts()
    for _ in range(1000):
        counts.add(np.arange(50))
        assert counts._num_waiting <= 100 + 50
    assert len(counts.vocabulary()) == 51


def test_unseen_ids_are_unknown() -> None:
    ids = Vocabulary(np.array([5, 5, -3, 9]))
    assert ids(np.array([9, 5, -3, 0, 10**15])).tolist() == [3, 2, 1, 0, 0]
    assert IdCounts().vocabulary()(np.array([1])).tolist() == [0]
