"""What a model needs to know of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mtlfast.errors import bad


class DataSpec(Protocol):
    """The sizes of a data set; :class:`mtlfast.data.DatasetSpec` and :class:`Sizes` have them."""

    @property
    def vocab_sizes(self) -> Sequence[int]:
        """Rows of each field's embedding table, row 0 (padding or unknown) included."""

    @property
    def item_field(self) -> int | None:
        """The field with the target item; sequences hold ids of the same vocabulary.

        None where there are no sequences.
        """

    @property
    def max_lengths(self) -> Sequence[int]:
        """Longest sequence of each behavior."""

    @property
    def task_parents(self) -> Sequence[int | None]:
        """For each task the task it follows, None for a root."""

    @property
    def positive_rates(self) -> Sequence[float]:
        """Share of positive labels per task; empty when unknown."""

    @property
    def multi_valued(self) -> Sequence[int]:
        """Fields that may have several ids per row, ascending."""


@dataclass(frozen=True)
class Sizes:
    """A :class:`DataSpec` from plain values, for models that see no data set.

    Args:
        vocab_sizes: rows of each field's table.
        item_field: the field with the target item; None without behaviors.
        max_lengths: longest sequence of each of the ``M`` behaviors; empty without.
        task_parents: for each of the ``T`` tasks its parent, None for a root.
        positive_rates: share of positive labels per task; empty when unknown.
        multi_valued: fields that may have several ids per row, ascending.
    """

    vocab_sizes: tuple[int, ...]
    item_field: int | None
    max_lengths: tuple[int, ...]
    task_parents: tuple[int | None, ...]
    positive_rates: tuple[float, ...] = ()
    multi_valued: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.task_parents:
            raise bad("task_parents", "at least one task", "none")
