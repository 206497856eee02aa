"""Ids of a file -> rows of an embedding table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Vocabulary"]

Ints = NDArray[np.int64]


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
