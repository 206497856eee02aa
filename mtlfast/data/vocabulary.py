"""Ids of a file -> rows of an embedding table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["IdCounts", "Vocabulary"]

Ints = NDArray[np.int64]

_MERGE_FROM = 1 << 16  # distinct ids that wait before they are merged


class Vocabulary:
    """The ids seen in training get 1, 2, ... in ascending order; every other id gets 0.

    Args:
        seen: int64, ids with repetitions.
        min_count: ids seen less often stay unknown.
    """

    def __init__(self, seen: Ints, min_count: int = 1) -> None:
        ids, counts = np.unique(seen, return_counts=True)
        self.ids = ids[counts >= min_count]

    def __len__(self) -> int:
        """Rows of the table, with row 0."""
        return len(self.ids) + 1

    def __call__(self, ids: Ints) -> Ints:
        """int64 rows, of the shape of ``ids``."""
        if len(self.ids) == 0:
            return np.zeros_like(ids)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[place] == ids, place + 1, 0)


class IdCounts:
    """Counts ids that arrive in blocks; memory grows with the distinct ids alone."""

    def __init__(self) -> None:
        self._ids: Ints = np.empty(0, np.int64)
        self._counts: Ints = np.empty(0, np.int64)
        self._waiting: list[tuple[Ints, Ints]] = []
        self._num_waiting = 0

    def add(self, ids: Ints) -> None:
        """Count a block of int64 ids."""
        self._waiting.append(np.unique(ids, return_counts=True))
        self._num_waiting += len(self._waiting[-1][0])
        # Merging costs the whole table: wait until there is as much to merge.
        if self._num_waiting > max(_MERGE_FROM, len(self._ids)):
            self._merge()

    def vocabulary(self, min_count: int = 1) -> Vocabulary:
        """The ids counted at least ``min_count`` times."""
        self._merge()
        return Vocabulary(self._ids[self._counts >= min_count])

    def _merge(self) -> None:
        parts = [(self._ids, self._counts), *self._waiting]
        ids, place = np.unique(np.concatenate([p[0] for p in parts]), return_inverse=True)
        counts = np.zeros(len(ids), np.int64)
        np.add.at(counts, place, np.concatenate([p[1] for p in parts]))
        self._ids, self._counts = ids, counts
        self._waiting, self._num_waiting = [], 0
