"""Item draws follow the popularity they claim, exactly."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtlfast.data.synthetic.catalogue import Catalogue, alias_table
from mtlfast.data.synthetic.random_bits import RandomBits, hash_bits, uniform


def weights(max_size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=max_size)


@settings(max_examples=300, deadline=None)
@given(weights(40))
@example([1.0, 190.0, 0.5, 0.5, 1.0, 190.0])  # two heavy entries used up at once
def test_alias_table_reproduces_the_weights(values: list[float]) -> None:
    w = np.array(values)
    keep, alias = alias_table(w)
    probability = keep + np.bincount(alias, 1 - keep, minlength=len(w))
    np.testing.assert_allclose(probability / len(w), w / w.sum(), rtol=1e-9, atol=1e-9)
    assert (keep >= 0).all()
    assert (keep <= 1).all()


@pytest.mark.parametrize("values", [[1, 1, 1, 1], [3, 1, 1, 3], [2, 1, 1, 0.5, 0.5, 1]])
def test_alias_table_with_ties(values: list[float]) -> None:
    keep, alias = alias_table(np.array(values, dtype=np.float64))
    probability = keep + np.bincount(alias, 1 - keep, minlength=len(values))
    np.testing.assert_allclose(probability / len(values), np.array(values) / sum(values))


@pytest.mark.parametrize("num_items", [1, 5, 32, 33, 1000])
def test_popularity_is_zipf_over_all_items(num_items: int) -> None:
    catalogue = Catalogue(num_items, 32, 1.1, np.random.default_rng(0))
    expected = np.arange(1, num_items + 1) ** -1.1
    np.testing.assert_allclose(
        np.sort(catalogue.popularity)[::-1], expected / expected.sum(), rtol=1e-12
    )
    assert catalogue.size.sum() == num_items
    assert (catalogue.size > 0).all()


def test_draws_are_as_frequent_as_popular() -> None:
    catalogue = Catalogue(200, 8, 1.1, np.random.default_rng(1))
    n = 1_000_000
    words = RandomBits((1, 2))(n)
    category = catalogue.draw_category(words)
    item = catalogue.draw_item(words, category)
    assert (catalogue.category_of_index[item - 1] == category).all()
    observed = np.bincount(item - 1, minlength=200)
    expected = n * catalogue.popularity
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 199 + 5 * np.sqrt(2 * 199)


def test_random_words_are_fixed_by_their_key() -> None:
    a, b, c = (RandomBits(key)(3, 4) for key in ((7, 1), (7, 1), (7, 2)))
    assert (a == b).all()
    assert (a != c).any()
    # SFC64 behind a SeedSequence is part of NumPy's stability promise.
    assert a[0, 0] == 4_092_629_827_908_207_254


def test_hash_and_uniform() -> None:
    ids = np.arange(10_000)
    words = hash_bits(ids, 0)
    assert len(np.unique(words)) == len(ids)
    assert (words != hash_bits(ids, 1)).all()
    u = uniform(words)
    assert 0 < u.min() < 0.001
    assert 0.999 < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02
    assert uniform(np.array([0], dtype=np.uint64))[0] > 0
    assert uniform(np.array([2**64 - 1], dtype=np.uint64))[0] < 1
