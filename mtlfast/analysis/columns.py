"""One feature of a whole evaluation set, and batches in which that feature is permuted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlfast.analysis.rows import select_rows, with_own_sequences
from mtlfast.bags import FieldBags
from mtlfast.data import Batch
from mtlfast.jagged import JaggedSequences, rows_of_segments

__all__ = ["BagColumn", "Column", "FieldColumn", "SequenceColumn"]

Ints = NDArray[np.integer[Any]]


class Column(ABC):
    """The values of one feature for the N candidates of an evaluation set, filled batch by batch.

    Args:
        samples: N.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._filled = 0

    def add(self, batch: Batch) -> None:
        """Append the candidates of ``batch``."""
        if self._filled + len(batch) > self.samples:
            raise ValueError(
                f"batches: expected {self.samples} samples as in the first pass, found more"
            )
        self._store(batch, self._filled)
        self._filled += len(batch)

    def check_full(self) -> None:
        """Raise unless every candidate was added."""
        if self._filled != self.samples:
            raise ValueError(
                f"batches: expected {self.samples} samples as in the first pass, "
                f"found {self._filled}"
            )

    @abstractmethod
    def _store(self, batch: Batch, first: int) -> None: ...

    @abstractmethod
    def permuted(self, batch: Batch, sources: Ints, first: int) -> tuple[Tensor, Batch]:
        """The candidates of ``batch`` that change when they take the feature of others.

        Args:
            batch: candidates ``first, first + 1, ...`` of the evaluation set.
            sources: ``[B]``, whose value each of them takes.

        Returns:
            Which rows of ``batch`` change ``[n]``, and a batch of these with the other value.
        """


class FieldColumn(Column):
    """Ids of one sparse field.

    Args:
        samples: N.
        field: column of ``Batch.sparse``.
        vocab_size: ids are below it.
    """

    def __init__(self, samples: int, field: int, vocab_size: int) -> None:
        super().__init__(samples)
        self.field = field
        self._ids: Ints = np.empty(samples, np.int32 if vocab_size < 2**31 else np.int64)

    def _store(self, batch: Batch, first: int) -> None:
        self._ids[first : first + len(batch)] = batch.sparse[:, self.field].numpy()

    def values(self, samples: Ints) -> Tensor:
        """int64 ids of some candidates."""
        return torch.from_numpy(self._ids[samples].astype(np.int64))

    def permuted(self, batch: Batch, sources: Ints, first: int) -> tuple[Tensor, Batch]:
        taken = self._ids[sources]
        rows = np.flatnonzero(taken != self._ids[first : first + len(batch)])
        which = torch.from_numpy(rows)
        changed = select_rows(batch, which)
        sparse = changed.sparse.clone()
        sparse[:, self.field] = torch.from_numpy(taken[rows].astype(np.int64))
        return which, replace(changed, sparse=sparse)


class SequenceColumn(Column):
    """Sequences of one behavior; whole sequences change hands.

    Candidates that share a user share its sequence here as well.

    Args:
        samples: N.
        behavior: which of the M behaviors.
    """

    def __init__(self, samples: int, behavior: int) -> None:
        super().__init__(samples)
        self.behavior = behavior
        self._starts = np.empty(samples, np.int64)
        self._lengths = np.empty(samples, np.int64)
        self._parts: list[Tensor] = []
        self._tokens = 0
        self._max_len = 1

    def _store(self, batch: Batch, first: int) -> None:
        if batch.sequences is None:
            raise ValueError("batches: expected sequences, found None")
        part = batch.sequences.behavior(self.behavior)
        starts, lengths = part.offsets[:-1], part.offsets.diff()
        if batch.user_index is not None:
            starts, lengths = starts[batch.user_index], lengths[batch.user_index]
        rows = slice(first, first + len(batch))
        self._starts[rows] = starts.numpy()
        self._starts[rows] += self._tokens
        self._lengths[rows] = lengths.numpy()
        # A copy: a view would keep the whole batch alive.
        self._parts.append(part.values.clone())
        self._tokens += len(part.values)
        self._max_len = max(self._max_len, part.max_len)

    def check_full(self) -> None:
        super().check_full()
        self._parts = [torch.cat(self._parts)]

    def permuted(self, batch: Batch, sources: Ints, first: int) -> tuple[Tensor, Batch]:
        own = self._lengths[first : first + len(batch)]
        # Two empty sequences are equal, which in sparse behaviors most pairs are.
        rows = np.flatnonzero((own > 0) | (self._lengths[sources] > 0))
        which, taken = torch.from_numpy(rows), sources[rows]
        changed = with_own_sequences(select_rows(batch, which))
        if changed.sequences is None:
            raise ValueError("batches: expected sequences, found None")
        lengths = torch.from_numpy(self._lengths[taken])
        starts = torch.from_numpy(self._starts[taken])
        values = self._parts[0][rows_of_segments(starts, lengths)]
        return which, replace(changed, sequences=self._replaced(changed.sequences, values, lengths))

    def _replaced(
        self, sequences: JaggedSequences, values: Tensor, lengths: Tensor
    ) -> JaggedSequences:
        parts = [sequences.behavior(b).values for b in range(sequences.num_behaviors)]
        parts[self.behavior] = values
        every = sequences.lengths().clone()
        every[self.behavior] = lengths
        longest = max(sequences.max_len, self._max_len)
        return JaggedSequences.from_lengths(torch.cat(parts), every, max_len=longest)


class BagColumn(Column):
    """All ids of one multi-valued field, with their weights, and its id in ``Batch.sparse``.

    Args:
        samples: N.
        field: column of ``Batch.sparse``.
        place: which of the multi-valued fields it is.
        vocab_size: ids are below it.
    """

    def __init__(self, samples: int, field: int, place: int, vocab_size: int) -> None:
        super().__init__(samples)
        self._field = FieldColumn(samples, field, vocab_size)
        self._lists = SequenceColumn(samples, place)

    def _store(self, batch: Batch, first: int) -> None:
        self._field.add(batch)
        self._lists.add(_with_bags_as_sequences(batch))

    def check_full(self) -> None:
        super().check_full()
        self._lists.check_full()

    def permuted(self, batch: Batch, sources: Ints, first: int) -> tuple[Tensor, Batch]:
        which, lists = self._lists.permuted(_with_bags_as_sequences(batch), sources, first)
        changed = select_rows(batch, which)
        if lists.sequences is None or changed.bags is None:
            raise ValueError("batches: expected bags, found None")
        sparse = changed.sparse.clone()
        sparse[:, self._field.field] = self._field.values(sources[which.numpy()])
        ids, weights = lists.sequences.values.unbind(1)
        bags = FieldBags(
            lists.sequences.with_values(ids.long()),
            None if changed.bags.weights is None else weights.to(changed.bags.weights.dtype),
        )
        return which, replace(changed, sparse=sparse, bags=bags)


def _with_bags_as_sequences(batch: Batch) -> Batch:
    """The bags as sequences of pairs (id, weight); float64 holds every id of a table exactly."""
    if batch.bags is None:
        raise ValueError("batches: expected bags, found None")
    ids, weights = batch.bags
    values = ids.values.double()
    pairs = torch.stack((values, torch.ones_like(values) if weights is None else weights), dim=1)
    return Batch(batch.sparse, ids.with_values(pairs), batch.labels)
