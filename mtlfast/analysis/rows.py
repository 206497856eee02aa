"""Batches made of some rows of other batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mtlfast.bags import FieldBags
from mtlfast.data import Batch
from mtlfast.jagged import JaggedSequences, of_users

__all__ = ["concat_batches", "select_rows", "with_own_sequences"]


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """The candidates ``rows`` (int64 ``[n]``) of ``batch``, in this order.

    Users that several candidates share stay shared.
    """
    sequences, user_index = batch.sequences, batch.user_index
    if user_index is not None:
        user_index = user_index[rows]
    elif sequences is not None:
        sequences = of_users(sequences, rows)
    bags = None if batch.bags is None else _select_bags(batch.bags, rows)
    return Batch(batch.sparse[rows], sequences, batch.labels[rows], user_index, bags)


def with_own_sequences(batch: Batch) -> Batch:
    """The same candidates, each with sequences of its own: ``user_index`` is None."""
    if batch.user_index is None or batch.sequences is None:
        return replace(batch, user_index=None)
    return replace(batch, sequences=of_users(batch.sequences, batch.user_index), user_index=None)


def concat_batches(batches: Sequence[Batch]) -> Batch:
    """The candidates of all ``batches`` (at least one), none of which has a ``user_index``."""
    parts = [batch.sequences for batch in batches if batch.sequences is not None]
    sequences = _concat(parts, [part.values for part in parts]) if parts else None
    return Batch(
        torch.cat([batch.sparse for batch in batches]),
        sequences,
        torch.cat([batch.labels for batch in batches]),
        bags=_concat_bags([batch.bags for batch in batches if batch.bags is not None]),
    )


def _concat(parts: Sequence[JaggedSequences], values: Sequence[Tensor]) -> JaggedSequences:
    """All users of ``parts``, with ``values [N, ...]`` in the place of each part's own."""
    filled = [part.with_values(own) for part, own in zip(parts, values, strict=True)]
    behaviors = range(parts[0].num_behaviors)
    return JaggedSequences.from_lengths(
        torch.cat([part.behavior(b).values for b in behaviors for part in filled]),
        torch.cat([part.lengths() for part in parts], dim=1),
        max_len=max(part.max_len for part in parts),
    )


def _concat_bags(parts: Sequence[FieldBags]) -> FieldBags | None:
    if not parts:
        return None
    ids = [part.ids for part in parts]
    weights = [part.weights for part in parts if part.weights is not None]
    joined = _concat(ids, weights).values if weights else None
    return FieldBags(_concat(ids, [part.values for part in ids]), joined)


def _select_bags(bags: FieldBags, rows: Tensor) -> FieldBags:
    weights = bags.weights
    if weights is not None:
        weights = of_users(bags.ids.with_values(weights), rows).values
    return FieldBags(of_users(bags.ids, rows), weights)
