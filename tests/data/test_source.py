"""BatchStream and DataSource: lengths, resume, bounds."""

import pytest

from mtlfast.data import BatchStream, SyntheticSource
from mtlfast.data.source import num_batches
from mtlfast.data.synthetic import TENREC


@pytest.mark.parametrize(
    ("samples", "size", "drop_last", "expected"),
    [(10, 5, False, 2), (11, 5, False, 3), (11, 5, True, 2), (4, 5, True, 0), (4, 5, False, 1)],
)
def test_num_batches(samples: int, size: int, drop_last: bool, expected: int) -> None:
    assert num_batches(samples, size, drop_last=drop_last) == expected


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        num_batches(10, 0)


def test_stream_is_repeatable_and_knows_what_is_left() -> None:
    stream = BatchStream(lambda step: step, 5, start_step=2)  # type: ignore[arg-type, return-value]
    assert len(stream) == 3
    assert list(stream) == list(stream) == [2, 3, 4]
    assert list(BatchStream(stream.make_batch, 5, 5)) == []


@pytest.mark.parametrize("start", [-1, 6])
def test_start_step_must_lie_in_the_epoch(start: int) -> None:
    with pytest.raises(ValueError, match=f"start_step: expected 0 to 5, found {start}"):
        BatchStream(lambda step: step, 5, start)  # type: ignore[arg-type, return-value]


def test_last_batch_is_short_or_dropped() -> None:
    source = SyntheticSource(TENREC, num_users=50, num_items=50, train_samples=100, test_samples=70)
    assert [len(batch) for batch in source.train_batches(32)] == [32, 32, 32, 4]
    assert [len(batch) for batch in source.train_batches(32, drop_last=True)] == [32, 32, 32]
    assert [len(batch) for batch in source.test_batches(32)] == [32, 32, 6]
