"""The interface every data set offers to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from mtlfast.data.batch import Batch
from mtlfast.data.spec import DatasetSpec

__all__ = ["BatchStream", "DataSource", "num_batches"]


def num_batches(num_samples: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Batches that ``num_samples`` samples fill; the last may be short unless dropped."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    return num_samples // batch_size if drop_last else -(-num_samples // batch_size)


class BatchStream:
    """The batches ``start_step, start_step + 1, ...`` of one pass over the data.

    Iterable any number of times, always with the same batches; ``len()`` is the number of
    batches left, so progress bars can tell the time to go.

    Args:
        make_batch: gives the batch of one step; depends on nothing but the step.
        num_steps: number of batches in the whole pass.
        start_step: first step to give, in ``[0, num_steps]``.
    """

    def __init__(
        self, make_batch: Callable[[int], Batch], num_steps: int, start_step: int = 0
    ) -> None:
        if not 0 <= start_step <= num_steps:
            raise ValueError(f"start_step: expected 0 to {num_steps}, found {start_step}")
        self.make_batch = make_batch
        self.num_steps = num_steps
        self.start_step = start_step

    def __len__(self) -> int:
        return self.num_steps - self.start_step

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make_batch, range(self.start_step, self.num_steps))


class DataSource(ABC):
    """A data set with a training and a test part.

    The batch of ``(epoch, step)`` depends only on those two, the batch size and the source's
    seed: a run that resumes at a step sees exactly what an unbroken run sees.
    """

    spec: DatasetSpec
    skipped: int = 0
    """Malformed rows that were left out, where the source was told to skip them."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """What else was left out while reading, by reason."""

    @property
    @abstractmethod
    def num_train_samples(self) -> int:
        """Impressions in one training epoch."""

    @property
    @abstractmethod
    def num_test_samples(self) -> int:
        """Impressions in the test part."""

    @abstractmethod
    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        """The training batch of one step of one epoch."""

    @abstractmethod
    def test_batch(self, batch_size: int, step: int) -> Batch:
        """The test batch of one step."""

    def train_batches(
        self, batch_size: int, epoch: int = 0, start_step: int = 0, *, drop_last: bool = False
    ) -> BatchStream:
        """The training batches of an epoch, from ``start_step`` on, in that epoch's order."""
        return BatchStream(
            lambda step: self.train_batch(batch_size, epoch, step),
            num_batches(self.num_train_samples, batch_size, drop_last=drop_last),
            start_step,
        )

    def test_batches(self, batch_size: int) -> BatchStream:
        """All test batches, always in the same order."""
        return BatchStream(
            lambda step: self.test_batch(batch_size, step),
            num_batches(self.num_test_samples, batch_size),
        )
