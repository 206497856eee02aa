from __future__ import annotations

import numpy as np
import pytest

from mtlfast.data.bins import NumericBins, RowSample


def test_frequent_values_have_their_own_row_and_others_a_quantile():
    seen = np.concatenate([np.repeat([0.0, 10.0], 8), np.arange(1.0, 9.0)])
    bins = NumericBins(seen, min_count=8, num_bins=4)
    assert bins(np.array([0.0, 10.0])).tolist() == [1, 2]
    # The eight rare values 1..8 in four bins of two; numbers never seen fall into one as well.
    assert bins(np.arange(1.0, 9.0)).tolist() == [3, 3, 4, 4, 5, 5, 6, 6]
    assert bins(np.array([-5.0, 0.5, 9.5, 1e9])).tolist() == [3, 3, 6, 6]
    assert len(bins) == 7


def test_a_constant_column_and_one_without_rare_values():
    bins = NumericBins(np.repeat([3.0, 4.0], 9))
    assert bins(np.array([3.0, 4.0, 3.5, 100.0])).tolist() == [1, 2, 3, 3]
    assert len(bins) == 4
    few = NumericBins(np.array([1.0]), min_count=8)
    assert few(np.array([0.0, 1.0, 2.0])).max() < len(few)


def test_rows_stay_inside_the_table():
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 500, 2000).astype(float)
    bins = NumericBins(seen, min_count=6, num_bins=10)
    rows = bins(rng.normal(200, 300, 5000))
    assert rows.min() >= 1
    assert rows.max() < len(bins)
    assert set(np.unique(bins(seen))) == set(range(1, len(bins)))


@pytest.mark.parametrize("options", [{"min_count": 0}, {"num_bins": 0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected at least 1, found 0"):
        NumericBins(np.zeros(3), **options)


def test_a_sample_of_few_rows_is_all_of_them():
    sample = RowSample(("a", "b"), 100)
    for block in np.array_split(np.arange(60.0), 7):
        sample.add({"a": block, "b": -block})
    columns = sample.columns()
    assert sorted(columns["a"]) == list(range(60))
    assert np.array_equal(columns["a"], -columns["b"])


def test_a_sample_is_uniform_and_ignores_how_rows_are_cut():
    values = np.arange(20_000.0)
    samples = []
    for blocks in (1, 13, 400):
        sample = RowSample(("a",), 500)
        for block in np.array_split(values, blocks):
            sample.add({"a": block})
            assert len(sample.columns()["a"]) <= 500
        samples.append(sorted(sample.columns()["a"]))
    assert samples[0] == samples[1] == samples[2]
    assert len(set(samples[0])) == 500
    # Ten parts of 50 expected rows each; 5 standard deviations are 34.
    assert np.all(np.abs(np.histogram(samples[0], 10, (0, 20_000))[0] - 50) < 34)
    with pytest.raises(ValueError, match="sample_rows: expected at least 1, found 0"):
        RowSample(("a",), 0)
