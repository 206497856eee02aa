"""Occurrences of the target in the sequences, against loops over the samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlfast.analysis import count_occurrences, item_attribute
from mtlfast.data import Batch


def expected(source, attribute):
    """[M, T] means over positives, [M] over all: one token at a time."""
    key = np.arange(1000) if attribute is None else attribute.numpy()
    counts = np.zeros((2, source.samples))
    for i in range(source.samples):
        target = key[source.sparse[i, 1]]
        for b in range(2):
            tokens = source.tokens[b][source.user_of[i]].tolist()
            counts[b, i] = sum(key[t] == target != 0 for t in tokens)
    positive = source.labels > 0.5
    return [[counts[b, positive[:, t]].mean() for t in range(2)] for b in range(2)], counts.mean(1)


@pytest.mark.parametrize("per_user", [1, 3])
@pytest.mark.parametrize("by_item", [True, False])
def test_means_over_positives(make_source, per_user, by_item):
    source = make_source(300, per_user)
    attribute = None if by_item else (torch.arange(60) * 7) % 4  # 0 among them: unknown
    found = count_occurrences(source.test_batches(64), source.spec, attribute)
    means, overall = expected(source, attribute)
    assert np.array(found.means) == pytest.approx(np.array(means))
    assert found.overall == pytest.approx(overall)
    assert found.positives == tuple((source.labels > 0.5).sum(axis=0))
    assert (found.samples, found.behaviors, found.tasks) == (
        300,
        ("click", "like"),
        source.spec.tasks,
    )


def test_a_task_without_positives_has_no_mean(source):
    batches = [
        Batch(b.sparse, b.sequences, b.labels * torch.tensor([1.0, 0.0]))
        for b in source.test_batches(100)
    ]
    found = count_occurrences(batches, source.spec)
    assert [row[1] for row in found.means] == [None, None]
    assert found.positives[1] == 0 < found.positives[0]


def test_an_attribute_is_read_off_the_targets(source):
    def batches(noise):
        for batch in source.test_batches(100):
            sparse = batch.sparse.clone()
            sparse[:, 3] = sparse[:, 1] % 4 + torch.randint(0, 2, (len(batch),)) * noise
            yield Batch(sparse, batch.sequences, batch.labels)

    found = item_attribute(batches(0), source.spec, "noise")
    seen = np.unique(source.sparse[:, 1])
    assert torch.equal(found[seen], torch.from_numpy(seen) % 4)
    unseen = np.setdiff1d(np.arange(60), seen)
    assert not found[unseen].any()
    with pytest.raises(ValueError, match="field: expected a field that depends on the item alone"):
        item_attribute(batches(1), source.spec, "noise")
    with pytest.raises(ValueError, match="field: expected one of user, item, hour, noise, found x"):
        item_attribute(batches(0), source.spec, "x")
