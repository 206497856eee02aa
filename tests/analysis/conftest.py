"""Data with known structure, and models that read known parts of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlfast.data import Batch, DatasetSpec, DataSource
from mtlfast.jagged import JaggedSequences

FIELDS, BEHAVIORS, TASKS = ("user", "item", "hour", "noise"), ("click", "like"), ("buy", "share")
VOCABULARY = (40, 60, 24, 5)


class KnownSource(DataSource):
    """Labels: "buy" follows the item, "share" follows the hour and how long the clicks are.

    Args:
        samples: N.
        per_user: candidates that share a user; with more than one, batches have a ``user_index``.
    """

    def __init__(self, samples: int = 500, per_user: int = 1, seed: int = 0) -> None:
        self.spec = DatasetSpec(
            name="known",
            fields=FIELDS,
            vocab_sizes=VOCABULARY,
            item_field=1,
            behaviors=BEHAVIORS,
            max_lengths=(6, 3),
            tasks=TASKS,
            task_parents=(None, 0),
            positive_rates=(0.5, 0.3),
        )
        rng = np.random.default_rng(seed)
        self.samples, self.per_user = samples, per_user
        users = -(-samples // per_user)
        self.user_of = np.arange(samples) // per_user
        self.sparse = np.stack([rng.integers(1, n, samples) for n in VOCABULARY], axis=1)
        # Most likes are empty, as in real data.
        self.lengths = np.stack([rng.integers(0, 7, users), rng.integers(0, 4, users) // 3])
        self.tokens = [
            [torch.from_numpy(rng.integers(1, VOCABULARY[1], n)) for n in row]
            for row in self.lengths
        ]
        buy = rng.random(samples) < self.sparse[:, 1] / VOCABULARY[1]
        clicks = self.lengths[0, self.user_of]
        share = rng.random(samples) < 0.5 * self.sparse[:, 2] / 24 + 0.5 * clicks / 7
        self.labels = np.stack([buy, share], axis=1).astype(np.float32)

    @property
    def num_train_samples(self) -> int:
        return self.samples

    @property
    def num_test_samples(self) -> int:
        return self.samples

    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        return self.test_batch(batch_size, step)

    def test_batch(self, batch_size: int, step: int) -> Batch:
        rows = np.arange(step * batch_size, min((step + 1) * batch_size, self.samples))
        users, index = np.unique(self.user_of[rows], return_inverse=True)
        lengths = torch.from_numpy(self.lengths[:, users].astype(np.int64))
        values = [self.tokens[b][u] for b in range(2) for u in users]
        return Batch(
            sparse=torch.from_numpy(self.sparse[rows]),
            sequences=JaggedSequences.from_lengths(torch.cat(values), lengths),
            labels=torch.from_numpy(self.labels[rows]),
            user_index=None if self.per_user == 1 else torch.from_numpy(index),
        )


class KnownModel(nn.Module):
    """Logits of whole numbers: "buy" the item, "share" the hour, clicks and the sum of likes."""

    def forward(
        self, sparse: Tensor, sequences: JaggedSequences, user_index: Tensor | None = None
    ) -> Tensor:
        lengths = sequences.lengths().double()
        sums = torch.zeros(lengths.numel(), dtype=torch.float64).index_add(
            0, sequences.segment_ids(), sequences.values.double()
        )
        clicks, likes = lengths[0], sums.view(2, -1)[1]
        if user_index is not None:
            clicks, likes = clicks[user_index], likes[user_index]
        buy = sparse[:, 1].double()
        share = sparse[:, 2].double() + 4 * clicks + likes / 100
        return torch.stack([buy, share], dim=1)


@pytest.fixture
def source() -> KnownSource:
    return KnownSource()


@pytest.fixture
def make_source() -> type[KnownSource]:
    return KnownSource


@pytest.fixture
def model() -> nn.Module:
    return KnownModel()
