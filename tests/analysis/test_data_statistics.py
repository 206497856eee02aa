"""Statistics of a data set, against NumPy on all samples at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mtlfast.analysis import PUBLISHED, DataStatistics, count_statistics
from mtlfast.analysis.figures.data_statistics import draw_statistics
from mtlfast.bags import FieldBags
from mtlfast.data import Batch, DatasetSpec
from mtlfast.data.synthetic import ECOMMERCE, TENREC
from mtlfast.jagged import JaggedSequences


@pytest.mark.parametrize("per_user", [1, 3])
def test_everything_is_counted(make_source, per_user):
    source = make_source(300, per_user)
    source.sparse[::7, 2] = 0
    seen = []
    found = count_statistics(source.test_batches(64), source.spec, on_samples=seen.append)
    assert (found.samples, seen) == (300, [64, 64, 64, 64, 44])
    assert found.positives.tolist() == (source.labels > 0.5).sum(axis=0).tolist()
    assert found.positive_rates == pytest.approx(source.labels.mean(axis=0))
    # Every candidate counts its user's sequences.
    lengths = source.lengths[:, source.user_of]
    assert found.mean_lengths == pytest.approx(lengths.mean(axis=1))
    assert found.empty_shares == pytest.approx((lengths == 0).mean(axis=1))
    assert found.length_quantiles(1.0) == tuple(lengths.max(axis=1))
    expected = np.quantile(lengths, 0.6, axis=1, method="inverted_cdf")
    assert found.length_quantiles(0.6) == tuple(expected)
    assert found.distinct == tuple(len(np.unique(c[c > 0])) for c in source.sparse.T)
    assert found.unknown_shares == pytest.approx((source.sparse == 0).mean(axis=0))


def test_parts_add_up_and_an_id_in_both_is_one(source):
    batches = list(source.test_batches(100))
    whole = count_statistics(batches, source.spec)
    both = count_statistics(batches[:2], source.spec).merged(
        count_statistics(batches[2:], source.spec)
    )
    assert both.samples == whole.samples == 500
    assert both.distinct == whole.distinct
    for name in ("positives", "unknown", "lengths"):
        assert torch.equal(getattr(both, name), getattr(whole, name))


def test_all_ids_of_multi_valued_fields_count():
    spec = DatasetSpec("bags", ("a", "b"), (9, 9), None, (), (), ("t",), (None,), (0.5,), (1,))
    ids = JaggedSequences.from_lengths(torch.tensor([3, 4, 3, 8]), torch.tensor([[3, 1]]))
    sparse, labels = torch.tensor([[1, 3], [1, 8]]), torch.tensor([[1.0], [0.0]])
    found = count_statistics([Batch(sparse, None, labels, bags=FieldBags(ids))], spec)
    assert found.distinct == (1, 3)


def test_no_samples_and_wrong_data(source):
    nothing = count_statistics([], source.spec)
    assert nothing.positive_rates == (0.0, 0.0)
    assert nothing.mean_lengths == (0.0, 0.0)
    batch = source.test_batch(10, 0)
    with pytest.raises(ValueError, match="batch: expected sequences, found none"):
        DataStatistics(source.spec).add(Batch(batch.sparse, None, batch.labels))
    longer = JaggedSequences.from_lengths(
        torch.ones(7, dtype=torch.int64), torch.tensor([[7], [0]])
    )
    with pytest.raises(ValueError, match="sequences of at most 6 items, found 7"):
        DataStatistics(source.spec).add(Batch(batch.sparse[:1], longer, batch.labels[:1]))
    with pytest.raises(ValueError, match="share: expected above 0"):
        nothing.length_quantiles(0.0)


@pytest.mark.parametrize("shape", [TENREC, ECOMMERCE], ids=lambda shape: shape.name)
def test_generated_shapes_are_the_published_ones(shape):
    published = PUBLISHED[shape.name]
    assert tuple(published.positives) == shape.tasks
    assert shape.positive_rates == tuple(map(published.positive_rate, shape.tasks))
    means = [
        q * (1 - q**most) / (1 - q)
        for q, most in zip(shape.continuation, shape.max_lengths, strict=True)
    ]
    expected = [published.mean_lengths[name] for name in shape.behaviors]
    assert means == pytest.approx(expected, abs=0.005)


def test_the_plot_shows_parts_and_paper(source):
    found = count_statistics(source.test_batches(100), source.spec)
    figure = draw_statistics({"train": found, "test": found}, PUBLISHED["tenrec"])
    assert isinstance(figure, Figure)
    rates, lengths = figure.axes
    assert [len(bars) for bars in (*rates.containers, *lengths.containers)] == [2, 2, 2, 2]
    # "share" is a task of Tenrec's, "click" and "like" are sequences of it.
    assert [list(line.get_ydata()) for line in rates.lines] == [[243_310 / 117_551_246]]
    assert [list(line.get_ydata()) for line in lengths.lines] == [[11.62, 0.87]]
