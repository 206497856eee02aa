"""Lists of ids on disk, one behind the other: what rows have of a multi-valued field.

A row names its list by number, so that rows can share one, as all impressions of a user do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.vocabulary import Vocabulary

__all__ = ["Bags", "StagedBags", "StoredBags", "bag_column"]

Ints = NDArray[np.int64]

_CHUNK = 1 << 22


class Bags(NamedTuple):
    """Lists of ``n`` rows, one behind the other."""

    lengths: Ints
    """int64 ``[n]``."""
    ids: NDArray[np.integer]
    """``[N]``, in all."""
    weights: NDArray[np.floating]
    """``[N]``."""


def bag_column(field: str) -> str:
    """Where the numbers of a row's lists are."""
    return f"bag/{field}"


class StagedBags:
    """Lists with the publisher's ids, written one after the other.

    Args:
        base: path of the files, which get suffixes.
    """

    def __init__(self, base: Path) -> None:
        self._ids, self._weights = _file(base, "raw-ids"), _file(base, "weights")
        self._lengths: list[Ints] = []
        self._count = 0
        for file in (self._ids, self._weights):
            file.touch()

    def __len__(self) -> int:
        return self._count

    def add(self, bags: Bags) -> int:
        """Append lists; the number of the first."""
        first = self._count
        self._lengths.append(bags.lengths.astype(np.int64))
        self._count += len(bags.lengths)
        with open(self._ids, "ab") as file:
            bags.ids.astype(np.int64).tofile(file)
        with open(self._weights, "ab") as file:
            bags.weights.astype(np.float32).tofile(file)
        return first

    def ids(self) -> Iterator[Ints]:
        """All ids, some at a time."""
        with open(self._ids, "rb") as file:
            while len(ids := np.fromfile(file, np.int64, _CHUNK)):
                yield ids

    def encode(self, base: Path, vocabulary: Vocabulary) -> None:
        """Write what :class:`StoredBags` reads, and remove the files of this one."""
        with open(_file(base, "ids"), "wb") as file:
            for ids in self.ids():
                vocabulary(ids).astype(np.int32).tofile(file)
        offsets = np.zeros(self._count + 1, np.int64)
        if self._lengths:
            np.cumsum(np.concatenate(self._lengths), out=offsets[1:])
        with open(_file(base, "offsets"), "wb") as file:
            offsets.tofile(file)
        self._ids.unlink()
        self._weights.rename(_file(base, "weights"))


class StoredBags:
    """Lists of ids by number, mapped into memory.

    Args:
        base: as it was given to :meth:`StagedBags.encode`.
    """

    def __init__(self, base: Path) -> None:
        self._offsets = np.fromfile(_file(base, "offsets"), np.int64)
        count = int(self._offsets[-1])
        self._ids = _mapped(_file(base, "ids"), np.int32, count)
        self._weights = _mapped(_file(base, "weights"), np.float32, count)

    def __getitem__(self, numbers: NDArray[np.integer]) -> Bags:
        starts = self._offsets[numbers]
        lengths = self._offsets[numbers + np.int64(1)] - starts
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
        return Bags(lengths, np.asarray(self._ids[at]), np.asarray(self._weights[at]))


def _file(base: Path, kind: str) -> Path:
    return base.with_name(f"{base.name}.{kind}")


def _mapped(path: Path, kind: type[np.generic], count: int) -> NDArray[np.generic]:
    return np.memmap(path, kind, "r", shape=(count,)) if count else np.empty(0, kind)
