from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlfast.training.optimizers import (
    RowwiseAdagrad,
    RowwiseAdam,
    build_optimizers,
    coalesce_rows,
)

ROWS, WIDTH = 50, 6


def sparse_grad(ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    shape = (ROWS, values.shape[1])
    return torch.sparse_coo_tensor(ids[None], values, shape, check_invariants=True)


def random_grad(seed: int, count: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, ROWS, (count,), generator=generator) ** 2 // ROWS  # uneven
    return sparse_grad(ids, torch.randn(count, WIDTH, generator=generator))


@pytest.mark.parametrize("count", [0, 1, 200])
def test_coalesce_rows_equals_torch(count):
    grad = random_grad(0, count)
    rows, values = coalesce_rows(grad)
    expected = grad.coalesce()
    assert torch.equal(rows, expected.indices()[0])
    torch.testing.assert_close(values, expected.values())
    again = coalesce_rows(expected)
    assert torch.equal(again[1], expected.values())


def test_coalesce_rows_has_the_same_bits_for_any_thread_count():
    grad = random_grad(1, 100_000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(coalesce_rows(grad)[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_rowwise_adam_equals_torch_sparse_adam():
    ours = nn.Parameter(torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3)))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    optimizers = RowwiseAdam([ours], lr=0.05), torch.optim.SparseAdam([theirs], lr=0.05)
    for step in range(8):
        ours.grad, theirs.grad = random_grad(step), random_grad(step)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not torch.equal(ours, start)


def test_rowwise_adagrad_follows_its_definition():
    table = nn.Parameter(torch.zeros(ROWS, WIDTH))
    expected, total = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS)
    optimizer = RowwiseAdagrad([table], lr=0.1)
    for step in range(4):
        table.grad = random_grad(step)
        optimizer.step()
        grad = table.grad.to_dense()
        total += grad.square().mean(1)
        expected -= 0.1 * grad / (total.sqrt() + 1e-10)[:, None]
    torch.testing.assert_close(table.detach(), expected)


@pytest.mark.parametrize("kind", [RowwiseAdam, RowwiseAdagrad])
def test_only_the_rows_of_the_batch_move_and_others_keep_their_state(kind):
    table = nn.Parameter(torch.ones(ROWS, WIDTH))
    optimizer = kind([table], lr=0.1)
    table.grad = sparse_grad(torch.tensor([3, 7, 3]), torch.ones(3, WIDTH))
    optimizer.step()
    moved = (table != 1).any(1).nonzero().flatten()
    assert moved.tolist() == [3, 7]
    table.grad = sparse_grad(torch.tensor([], dtype=torch.int64), torch.ones(0, WIDTH))
    before = table.detach().clone()
    optimizer.step()
    assert torch.equal(table, before)


@pytest.mark.parametrize("kind", [RowwiseAdam, RowwiseAdagrad])
def test_nan_of_one_row_stays_in_that_row(kind):
    table = nn.Parameter(torch.ones(ROWS, WIDTH))
    values = torch.ones(3, WIDTH)
    values[1] = float("nan")
    table.grad = sparse_grad(torch.tensor([1, 2, 3]), values)
    kind([table]).step()
    assert table.isnan().any(1).nonzero().flatten().tolist() == [2]


def test_dense_gradients_are_refused():
    table = nn.Parameter(torch.ones(ROWS, WIDTH))
    table.grad = torch.ones(ROWS, WIDTH)
    with pytest.raises(ValueError, match="RowwiseAdam: expected sparse gradients"):
        RowwiseAdam([table]).step()


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (RowwiseAdam, {"lr": -1.0}, "lr: expected at least 0, found -1.0"),
        (RowwiseAdam, {"betas": (0.9, 1.0)}, r"betas: expected two values in \[0, 1\)"),
        (RowwiseAdagrad, {"eps": float("nan")}, "eps: expected at least 0, found nan"),
    ],
)
def test_bad_options_are_named(kind, options, text):
    with pytest.raises(ValueError, match=text):
        kind([nn.Parameter(torch.ones(2, 2))], **options)


class Tied(nn.Module):
    """Two small tables, one large, one large tied to another module."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Embedding(10, 4)
        self.large = nn.Embedding(100, 4)
        self.again = nn.Embedding(100, 4)
        self.again.weight = self.large.weight
        self.dense = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.dense(self.large(ids) + self.again(ids) + self.small(ids % 10)).sum()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("sparse_adam", [torch.optim.Adam, RowwiseAdam]),
        ("rowwise_adagrad", [torch.optim.Adam, RowwiseAdagrad]),
        ("dense", [torch.optim.Adam]),
    ],
)
def test_build_optimizers_takes_every_weight_once(name, kinds):
    model = Tied()
    optimizers = build_optimizers(
        model, learning_rate=0.1, embedding_optimizer=name, sparse_min_rows=50
    )
    assert [type(o) for o in optimizers] == kinds
    taken = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, taken)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    model(torch.tensor([1, 2, 2])).backward()
    before = model.large.weight.detach().clone()
    for optimizer in optimizers:
        optimizer.step()
    assert (model.large.weight != before).any(1).nonzero().flatten().tolist() == [1, 2]


def test_learning_rates_and_unknown_names():
    optimizers = build_optimizers(
        Tied(), learning_rate=0.1, embedding_learning_rate=0.5, sparse_min_rows=50
    )
    assert [o.param_groups[0]["lr"] for o in optimizers] == [0.1, 0.5]
    with pytest.raises(ValueError, match="embedding_optimizer: expected one of sparse_adam"):
        build_optimizers(Tied(), learning_rate=0.1, embedding_optimizer="sgd")
