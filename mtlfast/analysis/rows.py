"""Batches made of some rows of other batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mtlfast.data import Batch
from mtlfast.jagged import JaggedSequences

__all__ = ["concat_batches", "gather_segments", "select_rows", "with_own_sequences"]


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """The candidates ``rows`` (int64 ``[n]``) of ``batch``, in this order.

    Users that several candidates share stay shared.
    """
    sequences, user_index = batch.sequences, batch.user_index
    if user_index is not None:
        user_index = user_index[rows]
    elif sequences is not None:
        sequences = _users(sequences, rows)
    return Batch(batch.sparse[rows], sequences, batch.labels[rows], user_index)


def with_own_sequences(batch: Batch) -> Batch:
    """The same candidates, each with sequences of its own: ``user_index`` is None."""
    if batch.user_index is None or batch.sequences is None:
        return replace(batch, user_index=None)
    return replace(batch, sequences=_users(batch.sequences, batch.user_index), user_index=None)


def concat_batches(batches: Sequence[Batch]) -> Batch:
    """The candidates of all ``batches`` (at least one), none of which has a ``user_index``."""
    first = batches[0].sequences
    sequences = None
    if first is not None:
        parts = [batch.sequences for batch in batches if batch.sequences is not None]
        values = [part.behavior(b).values for b in range(first.num_behaviors) for part in parts]
        sequences = JaggedSequences.from_lengths(
            torch.cat(values),
            torch.cat([part.lengths() for part in parts], dim=1),
            max_len=max(part.max_len for part in parts),
        )
    return Batch(
        torch.cat([batch.sparse for batch in batches]),
        sequences,
        torch.cat([batch.labels for batch in batches]),
    )


def gather_segments(values: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """``values[starts[s] : starts[s] + lengths[s]]`` of every ``s``, behind each other."""
    packed = lengths.cumsum(0) - lengths
    rows = torch.repeat_interleave(starts - packed, lengths)
    return values[rows + torch.arange(len(rows), device=rows.device)]


def _users(sequences: JaggedSequences, users: Tensor) -> JaggedSequences:
    starts = sequences.offsets[:-1].view(sequences.num_behaviors, -1)[:, users]
    lengths = sequences.lengths()[:, users]
    values = gather_segments(sequences.values, starts.flatten(), lengths.flatten())
    return JaggedSequences.from_lengths(values, lengths, max_len=sequences.max_len)
