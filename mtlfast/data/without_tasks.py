"""A data set with some of its tasks left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mtlfast.data.batch import Batch
from mtlfast.data.source import DataSource
from mtlfast.data.spec import DatasetSpec

__all__ = ["WithoutTasks", "remove_tasks"]


class WithoutTasks(DataSource):
    """``source`` without the labels of ``tasks``, as DTRN's Table 8 (CIKM 2023) removes one.

    Args:
        source: any data set.
        tasks: names of the tasks to leave out.

    Raises:
        ValueError: for a name that is no task, or if none would be left.
    """

    def __init__(self, source: DataSource, tasks: Sequence[str]) -> None:
        self.spec = remove_tasks(source.spec, tasks)
        self.source = source
        self.skipped, self.left_out = source.skipped, source.left_out
        kept = [t for t, name in enumerate(source.spec.tasks) if name in self.spec.tasks]
        self._kept = torch.tensor(kept)

    @property
    def num_train_samples(self) -> int:
        return self.source.num_train_samples

    @property
    def num_test_samples(self) -> int:
        return self.source.num_test_samples

    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        return self._without(self.source.train_batch(batch_size, epoch, step))

    def test_batch(self, batch_size: int, step: int) -> Batch:
        return self._without(self.source.test_batch(batch_size, step))

    def _without(self, batch: Batch) -> Batch:
        return replace(batch, labels=batch.labels[:, self._kept])


def remove_tasks(spec: DatasetSpec, tasks: Sequence[str]) -> DatasetSpec:
    """``spec`` without ``tasks``; tasks that followed one of them follow what it followed.

    Raises:
        ValueError: for a name that is no task, or if none would be left.
    """
    unknown = [name for name in tasks if name not in spec.tasks]
    if unknown or set(tasks) >= set(spec.tasks):
        raise ValueError(
            f"without_tasks: expected some of {', '.join(spec.tasks)}, but not all, found "
            f"{', '.join(tasks)}"
        )
    kept = [t for t, name in enumerate(spec.tasks) if name not in tasks]

    def parent_of(task: int) -> int | None:
        parent = spec.task_parents[task]
        while parent is not None and parent not in kept:
            parent = spec.task_parents[parent]
        return None if parent is None else kept.index(parent)

    return replace(
        spec,
        tasks=tuple(spec.tasks[t] for t in kept),
        task_parents=tuple(parent_of(t) for t in kept),
        positive_rates=tuple(spec.positive_rates[t] for t in kept),
    )
