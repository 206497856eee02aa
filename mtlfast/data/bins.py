"""Numbers -> rows of an embedding table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["NumericBins", "RowSample"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class NumericBins:
    """Values that are frequent in training get a row of their own, all others one per quantile.

    Rows 1, 2, ... are the frequent values in ascending order, then the bins. The bins split what is
    left of the training values at its quantiles, and are open at both ends, so that every number
    has a row; row 0 stays for unknown and is not used.

    Args:
        seen: the training values.
        min_count: how often a value must occur to have its own row.
        num_bins: bins for the other values, at most.
    """

    def __init__(self, seen: Floats, min_count: int = 8, num_bins: int = 32) -> None:
        if min_count < 1:
            raise ValueError(f"min_count: expected at least 1, found {min_count}")
        if num_bins < 1:
            raise ValueError(f"num_bins: expected at least 1, found {num_bins}")
        values, counts = np.unique(seen, return_counts=True)
        self.values = values[counts >= min_count]
        rare = np.repeat(values, counts * (counts < min_count))
        inner = np.arange(1, num_bins) / num_bins
        self.edges = np.unique(np.quantile(rare, inner)) if len(rare) else np.empty(0)

    def __len__(self) -> int:
        """Rows of the table, with row 0."""
        return 1 + len(self.values) + len(self.edges) + 1

    def __call__(self, numbers: Floats) -> Ints:
        """int64 rows, of the shape of ``numbers``."""
        binned = 1 + len(self.values) + np.searchsorted(self.edges, numbers, side="right")
        if len(self.values) == 0:
            return binned
        place = np.minimum(np.searchsorted(self.values, numbers), len(self.values) - 1)
        return np.where(self.values[place] == numbers, 1 + place, binned)


class RowSample:
    """The numbers of rows drawn without replacement from rows that arrive in blocks.

    Every row gets a random key and those with the smallest keys stay, so that the sample depends on
    neither the size of the blocks nor the number of rows, which nobody needs to know beforehand.

    Args:
        names: columns of float64.
        size: rows in the sample; all of them while there are fewer.
        seed: of the keys.
    """

    def __init__(self, names: tuple[str, ...], size: int, seed: int = 2018) -> None:
        if size < 1:
            raise ValueError(f"sample_rows: expected at least 1, found {size}")
        self.names = names
        self.size = size
        self._rng = np.random.default_rng(seed)
        self._keys: Floats = np.empty(0)
        self._rows: Floats = np.empty((0, len(names)))

    def add(self, columns: Mapping[str, Floats]) -> None:
        """Consider some rows."""
        if not self.names:
            return
        keys = self._rng.random(len(columns[self.names[0]]))
        if len(self._keys) == self.size:  # only what beats the worst row of the sample can enter
            chosen = np.flatnonzero(keys < self._keys.max())
        else:
            chosen = np.arange(len(keys))
        rows = np.stack([columns[name][chosen] for name in self.names], axis=1)
        keys = np.concatenate((self._keys, keys[chosen]))
        rows = np.concatenate((self._rows, rows))
        if len(keys) > self.size:
            stay = np.argpartition(keys, self.size - 1)[: self.size]
            keys, rows = keys[stay], rows[stay]
        self._keys, self._rows = keys, rows

    def columns(self) -> dict[str, Floats]:
        """The sampled values of each column."""
        return {name: self._rows[:, i] for i, name in enumerate(self.names)}
