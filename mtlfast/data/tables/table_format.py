"""What a reader of some publisher's files must offer, so that the rest is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.compressed import OnError
from mtlfast.data.tables.bags import StagedBags
from mtlfast.data.tables.blocks import BLOCK_BYTES, LineReader

__all__ = ["MISSING", "FilePart", "Reading", "RowBlock", "TableFormat"]

T = TypeVar("T")
FilePart = Literal["train", "validation", "test"]
MISSING = np.iinfo(np.int64).min
"""Stands for an id that a row does not have; it becomes the unknown id."""


@dataclass(frozen=True)
class RowBlock:
    """Some rows as the publisher wrote them.

    Attributes:
        columns: per categorical field int64 ``[n]`` (:data:`MISSING` where absent), per numeric
            field float64 ``[n]``; per multi-valued field, where these are asked for, also
            ``bag_column(field)`` with the numbers of the rows' lists in ``Reading.bags``.
        labels: bool ``[n, T]``.
    """

    columns: dict[str, NDArray[Any]]
    labels: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: NDArray[np.bool_]) -> RowBlock:
        """Some of the rows."""
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return RowBlock(columns, self.labels[chosen])


@dataclass
class Reading:
    """How to read, and what was left out while reading.

    Args:
        scratch: an empty folder for what does not fit into memory.
        on_error: malformed rows raise, or are skipped and counted.
        on_read: called with the number of bytes of each read.
        block_bytes: how much text is parsed at a time.

    Attributes:
        bags: of the part that is read, where the lists of each multi-valued field go; None if they
            are not asked for.
        left_out: rows left out, by reason; "malformed" are those of ``on_error="skip"``.
    """

    scratch: Path
    on_error: OnError = "raise"
    on_read: Callable[[int], None] | None = None
    block_bytes: int = BLOCK_BYTES
    bags: dict[str, StagedBags] | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    def lines(self, parse: Callable[[bytes], T], header: str | None = None) -> LineReader[T]:
        """A reader of lines with these settings, see :class:`LineReader`."""
        return LineReader(
            parse,
            self.on_error,
            header,
            self.on_read,
            lambda: self.leave_out("malformed", 1),
            self.block_bytes,
        )

    def leave_out(self, reason: str, rows: int) -> None:
        """Count rows that are left out."""
        if rows:
            self.left_out[reason] = self.left_out.get(reason, 0) + rows


class TableFormat(ABC):
    """Files of one data set in one format.

    Attributes:
        name: of the data set and the format, such as "aliexpress-raw".
        categorical: names of the fields with ids.
        numeric: names of the fields with numbers.
        multi_valued: those of ``categorical`` that may have several ids per row; their columns
            hold one of them.
        tasks, task_parents: see :class:`mtlfast.data.DatasetSpec`.
        files: per part the files it is read from.
    """

    name: str
    categorical: tuple[str, ...]
    numeric: tuple[str, ...]
    multi_valued: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("click", "conversion")
    task_parents: tuple[int | None, ...] = (None, 0)
    files: dict[FilePart, tuple[Path, ...]]

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields, those with ids first."""
        return self.categorical + self.numeric

    @abstractmethod
    def read(self, part: FilePart, reading: Reading) -> Iterator[RowBlock]:
        """The rows of a part, block by block, in bounded memory.

        Raises:
            ValueError: naming file and line of a malformed row.
        """
