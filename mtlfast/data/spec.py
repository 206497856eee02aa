"""What a model must know about a data set before it sees any of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DatasetSpec"]


@dataclass(frozen=True)
class DatasetSpec:
    """Names and sizes of one multi-task, multi-behavior data set.

    Models are built from ``(spec, config)``; the spec is stored in checkpoints, so that a
    checkpoint can be loaded without its data.

    Args:
        name: name of the data set, for logs.
        fields: names of the F sparse fields, the columns of ``Batch.sparse``.
        vocab_sizes: rows of each field's embedding table. Ids lie in ``[0, vocab_sizes[f])``;
            row 0 means padding or unknown and is never trained.
        item_field: column of ``Batch.sparse`` with the target item. The history sequences hold
            ids of the same vocabulary. ``None`` where there are no behaviors.
        behaviors: names of the M behavior sequences, in the order of ``Batch.sequences``; none in
            data of sparse fields alone.
        max_lengths: longest sequence of each behavior, in items.
        tasks: names of the T tasks, the columns of ``Batch.labels``.
        task_parents: for each task the index of the task it follows in the funnel, or ``None``
            for a root. A tree: no cycles. AITM-style heads read it; the others ignore it.
        positive_rates: share of positive labels per task in the training data (expected or
            measured); used for initial biases and reports only.
        multi_valued: columns of ``Batch.sparse``, ascending, whose fields may have several ids per
            row; all of them are in ``Batch.bags``.

    Raises:
        ValueError: if lengths disagree or an index is out of range.
    """

    name: str
    fields: tuple[str, ...]
    vocab_sizes: tuple[int, ...]
    item_field: int | None
    behaviors: tuple[str, ...]
    max_lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    task_parents: tuple[int | None, ...]
    positive_rates: tuple[float, ...]
    multi_valued: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _same_length("vocab_sizes", self.vocab_sizes, "fields", self.fields)
        _same_length("max_lengths", self.max_lengths, "behaviors", self.behaviors)
        _same_length("task_parents", self.task_parents, "tasks", self.tasks)
        _same_length("positive_rates", self.positive_rates, "tasks", self.tasks)
        for kind in ("fields", "behaviors", "tasks"):
            names = getattr(self, kind)
            if len(set(names)) != len(names):
                raise ValueError(f"{kind}: expected distinct names, found {names}")
        if self.item_field is None:
            if self.behaviors:
                raise ValueError(
                    f"item_field: expected an index in [0, {len(self.fields)}) as there are "
                    "behaviors, found None"
                )
        elif not 0 <= self.item_field < len(self.fields):
            raise ValueError(
                f"item_field: expected an index in [0, {len(self.fields)}), found {self.item_field}"
            )
        multi = self.multi_valued
        if list(multi) != sorted({f for f in multi if 0 <= f < len(self.fields)}):
            raise ValueError(
                f"multi_valued: expected ascending indices in [0, {len(self.fields)}), "
                f"found {multi}"
            )
        if self.item_field in multi:
            raise ValueError(f"multi_valued: expected other fields than item_field, found {multi}")
        if any(size < 1 for size in self.vocab_sizes):
            raise ValueError(f"vocab_sizes: expected sizes of at least 1, found {self.vocab_sizes}")
        if any(length < 1 for length in self.max_lengths):
            raise ValueError(f"max_lengths: expected at least 1, found {self.max_lengths}")
        _check_tree(self.task_parents)

    @property
    def num_fields(self) -> int:
        """F, the number of sparse fields."""
        return len(self.fields)

    @property
    def num_behaviors(self) -> int:
        """M, the number of behavior sequences."""
        return len(self.behaviors)

    @property
    def num_tasks(self) -> int:
        """T, the number of tasks."""
        return len(self.tasks)

    @property
    def item_vocab_size(self) -> int:
        """Rows of the item table, shared by the target item and all histories; 0 without one."""
        return 0 if self.item_field is None else self.vocab_sizes[self.item_field]

    @property
    def max_length(self) -> int:
        """Longest sequence of any behavior; the ``max_len`` of every batch's sequences."""
        return max(self.max_lengths, default=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for checkpoints and YAML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetSpec:
        """Inverse of :meth:`to_dict`."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"data: expected the keys of DatasetSpec, found {error}") from error


def _same_length(name: str, value: tuple[Any, ...], other: str, reference: tuple[Any, ...]) -> None:
    if len(value) != len(reference):
        raise ValueError(
            f"{name}: expected one entry per entry of {other} ({len(reference)}), "
            f"found {len(value)}"
        )


def _check_tree(parents: tuple[int | None, ...]) -> None:
    for task in range(len(parents)):
        seen = {task}
        parent = parents[task]
        while parent is not None:
            if not 0 <= parent < len(parents):
                raise ValueError(
                    f"task_parents: expected indices in [0, {len(parents)}) or None, found {parent}"
                )
            if parent in seen:
                raise ValueError(f"task_parents: expected a tree, found a cycle in {parents}")
            seen.add(parent)
            parent = parents[parent]
