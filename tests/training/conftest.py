"""A data source and a model small enough for a run of a fraction of a second."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlfast.data import Batch, DatasetSpec, DataSource
from mtlfast.jagged import JaggedSequences
from mtlfast.models import task_losses
from mtlfast.training import TrainConfig, Trainer


class TinySource(DataSource):
    """Labels that follow the item id; a failure can be planted at one training step."""

    def __init__(self, num_train: int = 100, num_test: int = 60, fail_at: int | None = None):
        self.spec = DatasetSpec(
            name="tiny",
            fields=("user", "item"),
            vocab_sizes=(8, 50),
            item_field=1,
            behaviors=("click", "like"),
            max_lengths=(3, 2),
            tasks=("click", "like"),
            task_parents=(None, 0),
            positive_rates=(0.5, 0.2),
        )
        self._num_train, self._num_test, self.fail_at = num_train, num_test, fail_at

    @property
    def num_train_samples(self) -> int:
        return self._num_train

    @property
    def num_test_samples(self) -> int:
        return self._num_test

    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        if self.fail_at is not None and step == self.fail_at:
            raise RuntimeError("planted failure")
        size = min(batch_size, self._num_train - step * batch_size)
        return self._batch(size, (1, epoch, step))

    def test_batch(self, batch_size: int, step: int) -> Batch:
        return self._batch(min(batch_size, self._num_test - step * batch_size), (2, 0, step))

    def _batch(self, size: int, key: tuple[int, ...]) -> Batch:
        rng = np.random.default_rng(key)
        sparse = np.stack([rng.integers(1, 8, size), rng.integers(1, 50, size)], axis=1)
        lengths = rng.integers(0, 3, (2, size))
        values = torch.from_numpy(rng.integers(1, 50, int(lengths.sum())))
        chance = sparse[:, 1] / 50
        click = rng.random(size) < chance
        labels = np.stack([click, click & (rng.random(size) < 0.5)], axis=1)
        return Batch(
            sparse=torch.from_numpy(sparse),
            sequences=JaggedSequences.from_lengths(values, torch.from_numpy(lengths)),
            labels=torch.from_numpy(labels.astype(np.float32)),
        )


class TinyModel(nn.Module):
    """Sum of two embeddings; its dropout draws from the global generator at every step."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.user = nn.Embedding(8, 4)
        self.item = nn.Embedding(50, 4, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(4, 2)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def forward(
        self, sparse: Tensor, sequences: JaggedSequences, user_index: Tensor | None = None
    ) -> Tensor:
        history = torch.zeros_like(self.item(sparse[:, 1]))
        rows = torch.repeat_interleave(
            torch.arange(sequences.num_users).repeat(sequences.num_behaviors),
            sequences.lengths().flatten(),
        )
        history = history.index_add(0, rows, 0.1 * self.item(sequences.values))
        hidden = self.user(sparse[:, 0]) + self.item(sparse[:, 1]) + history
        return self.out(self.dropout(hidden.tanh()))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return task_losses(logits, labels).sum()


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """`make_trainer("name", source=..., **settings)`: a trainer in its own run folder."""

    def make(
        name: str,
        *,
        source: DataSource | None = None,
        model: nn.Module | None = None,
        **settings: Any,
    ) -> Trainer:
        defaults: dict[str, Any] = {
            "batch_size": 10,
            "log_every": 1,
            "checkpoint_every": 3,
            "sparse_min_rows": 40,
            "accelerator": "cpu",
            "tensorboard": False,
        }
        config = TrainConfig(**{**defaults, **settings})
        torch.manual_seed(config.seed)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Trainer(
            config,
            TinySource() if source is None else source,
            TinyModel() if model is None else model,
            folder,
            quiet=True,
        )

    return make


@pytest.fixture
def tiny_source() -> type[TinySource]:
    return TinySource


@pytest.fixture
def tiny_model() -> type[TinyModel]:
    return TinyModel


def read_curve(folder: Path) -> list[list[str]]:
    """The rows of train.csv without the speed, which no two runs share."""
    with open(folder / "train.csv", newline="", encoding="utf-8") as file:
        return [row[:-1] for row in csv.reader(file)]


@pytest.fixture
def curve() -> Callable[[Path], list[list[str]]]:
    return read_curve
