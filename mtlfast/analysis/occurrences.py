"""How often the target occurs in each behavior sequence, for the positives of each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlfast.analysis.rows import with_own_sequences
from mtlfast.data import Batch, DatasetSpec
from mtlfast.errors import bad

__all__ = ["Occurrences", "count_occurrences", "item_attribute"]

_MOST_DIFFERENT = 0.01  # share of rows that may say otherwise of their item


@dataclass(frozen=True)
class Occurrences:
    """Mean occurrences per sequence and task.

    Attributes:
        behaviors: names of the M sequences.
        tasks: names of the T tasks.
        means: per sequence, per task, the mean over the task's positives; None without any.
        overall: per sequence the mean over all samples.
        positives: of each task.
        samples: looked at.
    """

    behaviors: tuple[str, ...]
    tasks: tuple[str, ...]
    means: tuple[tuple[float | None, ...], ...]
    overall: tuple[float, ...]
    positives: tuple[int, ...]
    samples: int


def item_attribute(
    batches: Iterable[Batch],
    spec: DatasetSpec,
    field: str,
    *,
    on_samples: Callable[[int], None] | None = None,
) -> Tensor:
    """The id that a field, such as the category, has for each item.

    Read off the target items; what is never a target is unknown.

    Args:
        batches: on the CPU.
        spec: of the data.
        field: a field that depends on the item alone.
        on_samples: called with the size of each batch, for progress bars.

    Returns:
        int64 ``[K_item]``, 0 where unknown.

    Raises:
        ValueError: for an unknown field, or one that differs between the rows of an item.
    """
    if field not in spec.fields:
        raise bad("field", f"one of {', '.join(spec.fields)}", field)
    column, item_column = spec.fields.index(field), _item_field(spec)
    found = torch.zeros(spec.item_vocab_size, dtype=torch.int64)
    rows = different = 0
    for batch in batches:
        items, values = batch.sparse[:, item_column], batch.sparse[:, column]
        known = (items > 0) & (values > 0)
        items, values = items[known], values[known]
        fresh = found[items] == 0
        found[items[fresh]] = values[fresh]
        rows += len(items)
        different += int((found[items] != values).sum())
        if on_samples is not None:
            on_samples(len(batch))
    if different > _MOST_DIFFERENT * rows:
        raise bad(
            "field",
            "a field that depends on the item alone",
            f"{field}, which differs between rows of an item in {different:,} of {rows:,} rows",
        )
    return found


def count_occurrences(
    batches: Iterable[Batch],
    spec: DatasetSpec,
    attribute: Tensor | None = None,
    *,
    on_samples: Callable[[int], None] | None = None,
) -> Occurrences:
    """Mean number of tokens that are the target, per sequence and task (DTRN, CIKM 2023, Table 1).

    Args:
        batches: on the CPU.
        spec: of the data.
        attribute: int64 ``[K_item]``, see :func:`item_attribute`: a token counts if its item's
            attribute is the target's. None: if it is the target item itself. Unknown ids (0) equal
            nothing.
        on_samples: called with the size of each batch, for progress bars.

    Raises:
        ValueError: for data without sequences.
    """
    item_column = _item_field(spec)
    sums = torch.zeros(spec.num_behaviors, spec.num_tasks, dtype=torch.float64)
    overall = torch.zeros(spec.num_behaviors, dtype=torch.float64)
    positives = torch.zeros(spec.num_tasks, dtype=torch.float64)
    samples = 0
    for batch in batches:
        sequences = with_own_sequences(batch).sequences
        if sequences is None:
            raise bad("batches", "data with sequences", "data without")
        tokens, targets = sequences.values, batch.sparse[:, item_column]
        if attribute is not None:
            tokens, targets = attribute[tokens], attribute[targets]
        segment = sequences.segment_ids()
        same = (tokens == targets[segment % max(len(batch), 1)]) & (tokens > 0)
        counts = torch.bincount(segment[same], minlength=spec.num_behaviors * len(batch))
        counts = counts.view(spec.num_behaviors, len(batch)).double()
        positive = (batch.labels > 0.5).double()
        sums += counts @ positive
        overall += counts.sum(dim=1)
        positives += positive.sum(dim=0)
        samples += len(batch)
        if on_samples is not None:
            on_samples(len(batch))
    if not samples:
        raise bad("batches", "at least one sample", "none")
    return Occurrences(
        spec.behaviors,
        spec.tasks,
        tuple(
            tuple(s / n if n else None for s, n in zip(row, positives.tolist(), strict=True))
            for row in sums.tolist()
        ),
        tuple((overall / samples).tolist()),
        tuple(int(n) for n in positives.tolist()),
        samples,
    )


def _item_field(spec: DatasetSpec) -> int:
    if spec.item_field is None or not spec.behaviors:
        raise bad("spec", "data with behavior sequences", f"{spec.name}, which has none")
    return spec.item_field
