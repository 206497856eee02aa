"""Generated data: published shapes, exact repetition, and something to learn."""

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from mtlfast.data import Batch, SyntheticSource
from mtlfast.data.synthetic import ECOMMERCE, TENREC, Shape

SHAPES = pytest.mark.parametrize("shape", [TENREC, ECOMMERCE], ids=lambda shape: shape.name)

AVERAGE_LENGTHS = {  # DTRN (CIKM 2023), Tables 2 and 3
    TENREC.name: (11.62, 0.12, 0.87, 0.21, 9.8),
    ECOMMERCE.name: (9.98, 7.34, 0.65, 16.96, 22.80),
}


@lru_cache
def small(shape: Shape, **options: Any) -> SyntheticSource:
    return SyntheticSource(shape, **{"num_users": 5000, "num_items": 2000, **options})


def assert_equal(a: Batch, b: Batch) -> None:
    assert torch.equal(a.sparse, b.sparse)
    assert torch.equal(a.sequences.values, b.sequences.values)
    assert torch.equal(a.sequences.offsets, b.sequences.offsets)
    assert torch.equal(a.labels, b.labels)


@SHAPES
def test_spec_has_the_published_sizes(shape: Shape) -> None:
    spec = SyntheticSource(shape).spec
    assert spec.item_vocab_size == {TENREC.name: 821_745, ECOMMERCE.name: 41_344}[shape.name]
    assert sum(spec.max_lengths) == {TENREC.name: 140, ECOMMERCE.name: 300}[shape.name]
    assert spec.num_fields == {TENREC.name: 5, ECOMMERCE.name: 6}[shape.name]


@SHAPES
def test_batches_fit_the_spec(shape: Shape) -> None:
    source = small(shape)
    spec, batch = source.spec, source.train_batch(300, 0, 0)
    assert batch.sparse.shape == (300, spec.num_fields)
    assert batch.sparse.dtype == batch.sequences.values.dtype == torch.int64
    assert batch.labels.shape == (300, spec.num_tasks)
    assert batch.labels.dtype == torch.float32
    assert batch.user_index is None
    assert batch.sequences.num_users == 300
    batch.sequences.validate()
    assert (batch.sparse >= 1).all()
    assert (batch.sparse < torch.tensor(spec.vocab_sizes)).all()
    assert batch.sequences.values.min() >= 1
    assert batch.sequences.values.max() < spec.item_vocab_size
    assert (batch.sequences.lengths().max(dim=1).values <= torch.tensor(spec.max_lengths)).all()


@SHAPES
@pytest.mark.parametrize("kind", ["geometric", "heavy_tailed"])
def test_average_lengths_are_the_published_ones(shape: Shape, kind: Any) -> None:
    source = small(shape, lengths=kind)
    lengths = torch.cat([source.train_batch(8192, 0, k).sequences.lengths() for k in range(4)], 1)
    lengths = lengths.double()
    error = lengths.std(dim=1) / lengths.shape[1] ** 0.5
    published = torch.tensor(AVERAGE_LENGTHS[shape.name], dtype=torch.float64)
    # The table rounds to 0.01 (9.8 to 0.1).
    assert ((lengths.mean(dim=1) - published).abs() < 5 * error + 0.03).all()
    share_without_history = (lengths.sum(dim=0) == 0).double().mean()
    if kind == "heavy_tailed":
        assert 0.48 < share_without_history < 0.55


@SHAPES
def test_maximal_lengths(shape: Shape) -> None:
    lengths = small(shape, lengths="max").train_batch(64, 0, 0).sequences.lengths()
    assert (lengths == torch.tensor(shape.max_lengths)[:, None]).all()


@SHAPES
def test_positive_rates_and_funnel(shape: Shape) -> None:
    source = small(shape)
    labels = torch.cat([source.train_batch(8192, 0, k).labels for k in range(24)])
    rates = torch.tensor(shape.positive_rates)
    error = (rates / len(labels)).sqrt()
    # 5 sigma of the sample, and 10 % for the finite sample that biases are fitted on.
    assert ((labels.mean(dim=0) - rates).abs() < 5 * error + 0.1 * rates).all()
    for task, parent in enumerate(shape.task_parents):
        if parent is not None:
            assert (labels[:, task] <= labels[:, parent]).all()
    assert ECOMMERCE.task_parents == (None, 0, 0, 2)  # click, entering < watch; conversion


@SHAPES
def test_steps_are_reproducible_and_distinct(shape: Shape) -> None:
    source = small(shape, seed=3)
    again = SyntheticSource(shape, seed=3, num_users=5000, num_items=2000)
    again.test_batch(10, 1)  # what was asked before must not matter
    assert_equal(source.train_batch(64, 1, 5), again.train_batch(64, 1, 5))
    assert_equal(source.test_batch(64, 5), again.test_batch(64, 5))
    first = source.train_batch(64, 0, 5)
    others = [
        source.train_batch(64, 0, 6),
        source.train_batch(64, 1, 5),
        source.test_batch(64, 5),
        small(shape, seed=4).train_batch(64, 0, 5),
    ]
    for other in others:
        assert not torch.equal(first.sparse[:, :2], other.sparse[:, :2])


def test_resumed_stream_continues_exactly() -> None:
    source = small(TENREC, train_samples=320)
    whole = list(source.train_batches(64, epoch=2))
    for batch, expected in zip(source.train_batches(64, 2, start_step=3), whole[3:], strict=True):
        assert_equal(batch, expected)


@SHAPES
@pytest.mark.parametrize(("batch_size", "num_users"), [(96, 12), (100, 13), (3, 1)])
def test_candidates_share_users(shape: Shape, batch_size: int, num_users: int) -> None:
    batch = small(shape, candidates_per_user=8).train_batch(batch_size, 0, 0)
    assert batch.user_index is not None
    assert torch.equal(batch.user_index, torch.arange(batch_size) // 8)
    assert batch.sequences.num_users == num_users
    assert batch.sparse.shape[0] == batch_size
    for field in (0, -2, -1):  # user, gender, age
        per_user = batch.sparse[::8, field]
        assert torch.equal(batch.sparse[:, field], per_user[batch.user_index])
    assert len(batch.sparse[:, 1].unique()) > num_users or batch_size == 3


@SHAPES
def test_attributes_belong_to_users_and_items(shape: Shape) -> None:
    source = small(shape, num_users=40, num_items=40)
    sparse = source.train_batch(2000, 0, 0).sparse
    for owner, field in ((0, -2), (0, -1), (1, 2)):
        pairs = sparse[:, [owner, field]].unique(dim=0)
        assert len(pairs) == len(sparse[:, owner].unique())


def test_many_fields() -> None:
    source = small(ECOMMERCE, num_fields=116)
    batch = source.train_batch(500, 0, 0)
    assert batch.sparse.shape == (500, 116)
    assert (batch.sparse < torch.tensor(source.spec.vocab_sizes)).all()
    assert (batch.sparse >= 1).all()
    # More fields change nothing about labels and histories.
    plain = small(ECOMMERCE).train_batch(500, 0, 0)
    assert torch.equal(batch.sequences.values, plain.sequences.values)


@SHAPES
def test_labels_depend_on_the_match_of_target_and_history(shape: Shape) -> None:
    source = small(shape, lengths="max", num_items=320)
    catalogue = source._catalogue
    categories = torch.from_numpy(catalogue.category_of_index.astype(np.int64))
    share, labels = [], []
    for step in range(8):
        batch = source.train_batch(4096, 0, step)
        history = batch.sequences.to_padded()[0][0]
        target = categories[batch.sparse[:, 1] - 1]
        share.append((categories[history - 1] == target[:, None]).float().mean(dim=1))
        labels.append(batch.labels)
    match, label = torch.cat(share), torch.cat(labels)
    for task in range(source.spec.num_tasks):
        positive = label[:, task] > 0
        if positive.sum() > 200:
            assert match[positive].mean() > 1.3 * match[~positive].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": "long"}, r"lengths: expected one of .*, found 'long'"),
        ({"num_fields": 6}, "num_fields: expected 5 to 5 for synthetic:tenrec, found 6"),
        ({"candidates_per_user": 0}, "candidates_per_user: expected at least 1, found 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"train_samples": 0}, "train_samples: expected at least 1"),
        ({"num_items": 1 << 28}, "num_items: expected 1 to"),
        ({"num_users": 0}, "num_users: expected at least 1, found 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticSource(TENREC, **options)
