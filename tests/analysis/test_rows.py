"""Choosing, expanding and joining rows of batches, against plain lists."""

from __future__ import annotations

import pytest
import torch

from mtlfast.analysis.rows import concat_batches, select_rows, with_own_sequences


def as_lists(batch):
    """Per candidate its ids, labels, and the tokens of each behavior."""
    padded, lengths = batch.sequences.to_padded()
    users = range(len(batch)) if batch.user_index is None else batch.user_index.tolist()
    histories = [
        [padded[b][u, : lengths[b, u]].tolist() for b in range(len(padded))] for u in users
    ]
    return list(zip(batch.sparse.tolist(), histories, batch.labels.tolist(), strict=True))


@pytest.mark.parametrize("per_user", [1, 4])
def test_rows_keep_their_histories(make_source, per_user):
    batch = make_source(50, per_user).test_batch(40, 0)
    rows = torch.tensor([3, 39, 0, 3, 17])
    expected = [as_lists(batch)[i] for i in rows]
    assert as_lists(select_rows(batch, rows)) == expected
    assert as_lists(with_own_sequences(select_rows(batch, rows))) == expected
    assert with_own_sequences(batch).user_index is None
    assert len(select_rows(batch, rows[:0])) == 0


def test_joined_batches_have_all_rows_in_order(make_source):
    source = make_source(50)
    parts = [source.test_batch(20, step) for step in range(3)]
    assert as_lists(concat_batches(parts)) == [row for part in parts for row in as_lists(part)]


def test_data_without_sequences(make_source):
    batch = make_source(10).test_batch(10, 0)
    batch.sequences = None
    rows = torch.tensor([4, 2])
    assert select_rows(batch, rows).sparse.tolist() == batch.sparse[[4, 2]].tolist()
    joined = concat_batches([with_own_sequences(batch), select_rows(batch, rows)])
    assert joined.sequences is None
    assert len(joined) == 12
