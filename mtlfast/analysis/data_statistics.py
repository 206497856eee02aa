"""Sizes of a data set: samples, distinct ids, positives, lengths of the histories."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mtlfast.bags import FieldBags
from mtlfast.data import Batch, DatasetSpec
from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences

__all__ = ["DataStatistics", "count_statistics"]


class DataStatistics:
    """Counts of some samples of one data set, such as its training part.

    Memory depends on the data's vocabularies and maximum lengths, not on the number of samples.

    Args:
        spec: of the data.

    Attributes:
        spec: as given.
        samples: counted.
        positives: int64 ``[T]``, samples with label 1.
        unknown: int64 ``[F]``, samples whose id is 0, which is padding, or a value that the
            training part has not (or too rarely).
        seen: per field bool ``[vocab_size]``, the ids that occurred.
        lengths: int64 ``[M, L + 1]``, samples whose sequence has ``0 ... L`` items; ``L`` is the
            data's longest possible.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec
        self.samples = 0
        self.positives = torch.zeros(spec.num_tasks, dtype=torch.int64)
        self.unknown = torch.zeros(spec.num_fields, dtype=torch.int64)
        self.seen = tuple(torch.zeros(size, dtype=torch.bool) for size in spec.vocab_sizes)
        self.lengths = torch.zeros(spec.num_behaviors, spec.max_length + 1, dtype=torch.int64)

    def add(self, batch: Batch) -> None:
        """Count the samples of one batch, which is on the CPU.

        Raises:
            ValueError: for a sequence longer than the spec says, or none where there should be.
        """
        self.samples += len(batch)
        self.positives += (batch.labels > 0.5).sum(dim=0)
        self.unknown += (batch.sparse == 0).sum(dim=0)
        for seen, ids in zip(self.seen, batch.sparse.unbind(1), strict=True):
            seen[ids] = True
        if batch.bags is not None:
            self._add_bags(batch.bags)
        if self.spec.num_behaviors:
            if batch.sequences is None:
                raise bad("batch", "sequences", "none")
            self._add_lengths(batch.sequences, batch.user_index)

    def merged(self, other: DataStatistics) -> DataStatistics:
        """The counts of both, which are of the same data; an id in both is one id."""
        both = DataStatistics(self.spec)
        both.samples = self.samples + other.samples
        both.positives = self.positives + other.positives
        both.unknown = self.unknown + other.unknown
        both.lengths = self.lengths + other.lengths
        both.seen = tuple(a | b for a, b in zip(self.seen, other.seen, strict=True))
        return both

    @property
    def distinct(self) -> tuple[int, ...]:
        """Per field the number of ids other than 0 that occurred."""
        return tuple(int(seen[1:].sum()) for seen in self.seen)

    @property
    def positive_rates(self) -> tuple[float, ...]:
        """Per task the share of positive samples."""
        return tuple((self.positives / max(self.samples, 1)).tolist())

    @property
    def unknown_shares(self) -> tuple[float, ...]:
        """Per field the share of samples with id 0."""
        return tuple((self.unknown / max(self.samples, 1)).tolist())

    @property
    def mean_lengths(self) -> tuple[float, ...]:
        """Per behavior, over all samples, empty sequences included (as DTRN's Tables 2 and 3)."""
        length = torch.arange(self.lengths.shape[1], dtype=torch.float64)
        return tuple((self.lengths.double() @ length / max(self.samples, 1)).tolist())

    @property
    def empty_shares(self) -> tuple[float, ...]:
        """Per behavior the share of samples whose sequence is empty."""
        return tuple((self.lengths[:, 0] / max(self.samples, 1)).tolist())

    def length_quantiles(self, share: float) -> tuple[int, ...]:
        """Per behavior the least length that ``share`` of the samples do not exceed; 1: the most.

        Raises:
            ValueError: for a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise bad("share", "above 0, at most 1", share)
        reached = self.lengths.cumsum(dim=1).double() >= share * self.samples
        return tuple(reached.to(torch.uint8).argmax(dim=1).tolist())

    def _add_bags(self, bags: FieldBags) -> None:
        for group, field in enumerate(self.spec.multi_valued):
            self.seen[field][bags.ids.behavior(group).values] = True

    def _add_lengths(self, sequences: JaggedSequences, user_index: Tensor | None) -> None:
        lengths = sequences.lengths().long()
        if user_index is not None:
            lengths = lengths[:, user_index]
        columns = self.lengths.shape[1]
        if lengths.numel() and int(lengths.max()) >= columns:
            raise bad("batch", f"sequences of at most {columns - 1} items", int(lengths.max()))
        cells = lengths + columns * torch.arange(len(lengths)).unsqueeze(1)
        self.lengths += (
            cells.flatten().bincount(minlength=self.lengths.numel()).view_as(self.lengths)
        )


def count_statistics(
    batches: Iterable[Batch],
    spec: DatasetSpec,
    *,
    on_samples: Callable[[int], None] | None = None,
) -> DataStatistics:
    """Count all samples of ``batches`` (DTRN, CIKM 2023, Tables 2 and 3).

    Args:
        batches: on the CPU.
        spec: of the data.
        on_samples: called with the size of each batch, for progress bars.
    """
    found = DataStatistics(spec)
    for batch in batches:
        found.add(batch)
        if on_samples is not None:
            on_samples(len(batch))
    return found
