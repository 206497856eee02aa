"""The smaller side of a join, on disk: rows by key, with only the keys in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["KeyedRows"]

Ints = NDArray[np.int64]


class KeyedRows:
    """Rows of fixed-width columns, appended block by block and then looked up by key.

    Columns go to files and are mapped into memory afterwards, so that what stays in memory is the
    system's to decide; 8 to 32 bytes per row, the sorted keys, always do.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._keys: list[NDArray[Any]] = []
        self._types: dict[str, np.dtype[Any]] = {}
        self._sorted: NDArray[Any] | None = None
        self._order: Ints = np.empty(0, np.int64)
        self._columns: dict[str, NDArray[Any]] = {}

    def append(self, keys: NDArray[Any], columns: dict[str, NDArray[Any]]) -> None:
        """Add rows: keys ``[n]``, integers or bytes, and columns ``[n, ...]``."""
        self._keys.append(keys)
        for name, column in columns.items():
            self._types.setdefault(name, np.dtype((column.dtype, column.shape[1:])))
            with open(self._folder / name, "ab") as file:
                np.ascontiguousarray(column).tofile(file)

    def __len__(self) -> int:
        return len(self._order)

    def finish(self) -> None:
        """Sort the keys; from now on rows can be looked up."""
        keys = np.concatenate(self._keys) if self._keys else np.empty(0, np.int64)
        self._keys = []
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        for name, kind in self._types.items():
            base, shape = kind.base, (len(keys), *kind.shape)
            self._columns[name] = (
                np.memmap(self._folder / name, base, "r", shape=shape)
                if len(keys)
                else np.empty(shape, base)
            )

    def find(self, keys: NDArray[Any]) -> tuple[Ints, Ints]:
        """All pairs of an inner join.

        Args:
            keys: ``[m]``.

        Returns:
            left, right: int64 ``[pairs]``, positions in ``keys``, ascending, and rows of this
            table, in the order they were added for each key.
        """
        if self._sorted is None:
            raise RuntimeError("find before finish")
        distinct, inverse = np.unique(keys, return_inverse=True)
        first = np.searchsorted(self._sorted, distinct, side="left")[inverse]
        count = np.searchsorted(self._sorted, distinct, side="right")[inverse] - first
        left = np.repeat(np.arange(len(keys)), count)
        starts = np.cumsum(count) - count
        right = self._order[np.arange(len(left)) + np.repeat(first - starts, count)]
        return left, right

    def column(self, name: str, rows: Ints) -> NDArray[Any]:
        """Values of a column at ``rows``."""
        return np.asarray(self._columns[name][rows])
