"""A data set of sparse fields alone, held in memory."""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast.data.batch import Batch
from mtlfast.data.source import DataSource
from mtlfast.data.spec import DatasetSpec

__all__ = ["TableSource"]

S = TypeVar("S", bound="TableSource")
_HOLD_OUT_SEED = 2024  # fixed, so that all settings are compared on the same rows


class TableSource(DataSource):
    """Impressions as rows of a table of ids; no histories.

    Args:
        spec: fields, tasks, no behaviors.
        train: ids ``[N, F]`` and labels ``[N, T]`` of the training part, of any integer type.
        test: the same of the test part.
        seed: fixes the order of the training rows in each epoch.
        skipped: malformed rows that were left out.

    Raises:
        ValueError: shapes that do not fit the spec, data with behaviors, or a negative seed.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        train: tuple[NDArray[np.integer], NDArray[np.generic]],
        test: tuple[NDArray[np.integer], NDArray[np.generic]],
        *,
        seed: int = 0,
        skipped: int = 0,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, found {seed}")
        for name, (ids, labels) in (("train", train), ("test", test)):
            expected = (len(ids), spec.num_fields), (len(ids), spec.num_tasks)
            if (ids.shape, labels.shape) != expected:
                raise ValueError(
                    f"{name}: expected shapes {expected}, found {(ids.shape, labels.shape)}"
                )
        if spec.num_behaviors:
            raise ValueError(f"spec: expected no behaviors, found {spec.behaviors}")
        self.spec = spec
        self.seed = seed
        self.skipped = skipped
        self._train, self._test = train, test
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def with_seed(self: S, seed: int) -> S:
        """The same data in another order of training."""
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, found {seed}")
        other = copy.copy(self)
        other.seed, other._order = seed, None
        return other

    def hold_out(self: S, parts: int = 5) -> S:
        """The same source with one of ``parts`` parts of the training rows as its test part.

        For choosing settings without a look at the test part. The rows are drawn once and for all,
        every class of the first task by itself, and train no more.
        """
        if parts < 2:
            raise ValueError(f"parts: expected at least 2, found {parts}")
        ids, labels = self._train
        rng = np.random.default_rng(_HOLD_OUT_SEED)
        held = np.zeros(len(ids), dtype=bool)
        for label in np.unique(labels[:, 0]):
            rows = rng.permutation(np.flatnonzero(labels[:, 0] == label))
            held[rows[: len(rows) // parts]] = True
        other = copy.copy(self)
        other._order = None
        other._train = ids[~held], labels[~held]
        other._test = ids[held], labels[held]
        return other

    @property
    def num_train_samples(self) -> int:
        return len(self._train[0])

    @property
    def num_test_samples(self) -> int:
        return len(self._test[0])

    def train_order(self, epoch: int) -> NDArray[np.int64]:
        """The training rows in the order of an epoch, fixed by the seed."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = epoch, rng.permutation(self.num_train_samples)
        return self._order[1]

    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        rows = self.train_order(epoch)[step * batch_size : (step + 1) * batch_size]
        return _batch(self._train[0][rows], self._train[1][rows])

    def test_batch(self, batch_size: int, step: int) -> Batch:
        rows = slice(step * batch_size, (step + 1) * batch_size)
        return _batch(self._test[0][rows], self._test[1][rows])


def _batch(ids: NDArray[np.integer], labels: NDArray[np.generic]) -> Batch:
    return Batch(
        sparse=torch.from_numpy(ids.astype(np.int64)),
        sequences=None,
        labels=torch.from_numpy(labels.astype(np.float32)),
    )
