"""Optimizers fused into the backward, against torch's own and against the formulas."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlfast.nn import FusedAdagrad, FusedAdam, MultiHashCodebook
from mtlfast.ops import multi_hash_lookup

NUM_FIELDS = 6


def module_of(**options: Any) -> MultiHashCodebook:
    torch.manual_seed(0)
    sizes = {"num_codewords": 60, "codeword_dim": 10} | options
    module = MultiHashCodebook(NUM_FIELDS, embed_dim=3, **sizes)
    torch.nn.init.normal_(module.codebook)
    return module


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(0, 8, (20, NUM_FIELDS), generator=generator),
            torch.randn(20, NUM_FIELDS, 3, generator=generator),
        )
        for _ in range(count)
    ]


def train(module: MultiHashCodebook, optimizer: torch.optim.Optimizer) -> None:
    for i, (ids, embeddings) in enumerate(batches()):
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 0.1 / (i + 1)  # as a scheduler would
        module(ids, embeddings).square().mean().backward()
        optimizer.step()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"codeword_dim": 16, "num_codewords": 3},
    {"sharing": "private", "orders": (2, 3), "shrinking": "softmax"},
    {"restoring": "attentive", "shrinking": "none"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adagrad_of_elements_is_that_of_torch(options: dict[str, Any]) -> None:
    one, two = module_of(**options), module_of(**options)
    train(one, FusedAdagrad(one, 0.1, rowwise=False))
    train(two, torch.optim.Adagrad([two.codebook], 0.1))
    assert one.codebook.grad is None
    torch.testing.assert_close(one.codebook, two.codebook, rtol=1e-4, atol=1e-5)
    for mine, other in zip(one.restore.parameters(), two.restore.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adam_of_elements_is_sparse_adam(options: dict[str, Any]) -> None:
    one, two = module_of(**options), module_of(sparse_grad=True, **options)
    train(one, FusedAdam(one, 0.1, rowwise=False))
    train(two, torch.optim.SparseAdam([two.codebook], 0.1))
    torch.testing.assert_close(one.codebook, two.codebook, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rowwise_formulas(adam: bool, options: dict[str, Any]) -> None:
    one, two = module_of(**options), module_of(sparse_grad=True, **options)
    train(one, FusedAdam(one) if adam else FusedAdagrad(one))
    codebook = two.codebook.detach()
    squares = torch.zeros(codebook.shape[:-1])
    average = torch.zeros_like(codebook)
    for i, (ids, embeddings) in enumerate(batches()):
        gradient: Any = torch.autograd.grad(two(ids, embeddings).square().mean(), two.codebook)[0]
        lr, at, g = 0.1 / (i + 1), tuple(gradient.indices()), gradient.values()
        if adam:
            average[at] = 0.9 * average[at] + 0.1 * g
            squares[at] = 0.999 * squares[at] + 0.001 * g.square().mean(-1)
            first = average[at] / (1 - 0.9 ** (i + 1))
            second = squares[at] / (1 - 0.999 ** (i + 1))
            eps = 1e-8 / (1 - 0.999 ** (i + 1)) ** 0.5  # torch adds it before the correction
            codebook[at] -= lr * first / (second.sqrt() + eps)[:, None]
        else:
            squares[at] += g.square().mean(-1)
            codebook[at] -= lr * g / (squares[at].sqrt() + 1e-10)[:, None]
    torch.testing.assert_close(one.codebook.detach(), codebook, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_codewords", [2, 3000])
def test_hot_rows_are_updated_once(num_codewords: int) -> None:
    """Rows with more entries than one part of the sorted list holds; rows summed by a table."""
    one, two = (module_of(num_codewords=num_codewords, shrinking="sum") for _ in range(2))
    ids, embeddings = torch.randint(0, 9, (700, NUM_FIELDS)), torch.randn(700, NUM_FIELDS, 3)
    fused, plain = FusedAdagrad(one, rowwise=False), torch.optim.Adagrad([two.codebook], 0.01)
    for module, optimizer in ((one, fused), (two, plain)):
        module(ids, embeddings).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(one.codebook, two.codebook, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [FusedAdagrad, FusedAdam])
@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_from_a_checkpoint(make: Any, rowwise: bool, dtype: torch.dtype) -> None:
    one = module_of().to(dtype)
    optimizer = make(one, rowwise=rowwise)
    for ids, embeddings in batches(2):
        one(ids, embeddings.to(dtype)).square().mean().backward()
    two = module_of().to(dtype)
    two.load_state_dict(one.state_dict())
    other = make(two, rowwise=rowwise)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for value in other.state[two.codebook].values():
        assert not isinstance(value, Tensor) or value.dtype == torch.float32
    for ids, embeddings in batches():
        for module in (one, two):
            module(ids, embeddings.to(dtype)).square().mean().backward()
    assert torch.equal(one.codebook, two.codebook)


@pytest.mark.parametrize("num_codewords", [3, 2000])
def test_any_number_of_threads_gives_the_same_bits(num_codewords: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (600, NUM_FIELDS), generator=generator)
    upstream = torch.randn(600, NUM_FIELDS, 20, generator=generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            module = module_of(num_codewords=num_codewords)
            next_step = functools.partial(FusedAdam(module).next_step, module.codebook, 0)
            for _ in range(3):
                out = multi_hash_lookup(ids, module.codebook[0], num_hashes=2, fused_step=next_step)
                out.backward(upstream)
            results.append(module.codebook)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_update_where_nothing_is_differentiated() -> None:
    module = module_of()
    FusedAdagrad(module)
    (ids, embeddings), before = batches(1)[0], module.codebook.clone()
    with torch.no_grad():
        module(ids, embeddings)
    module.codebook.requires_grad_(False)
    module(ids, embeddings.requires_grad_()).sum().backward()
    assert torch.equal(module.codebook, before)


def test_the_update_shows_to_autograd() -> None:
    """Whoever saved the old codebook must not differentiate with the new one."""
    module = module_of()
    FusedAdagrad(module)
    ids, embeddings = batches(1)[0]
    squares = module.codebook.square().sum()
    module(ids, embeddings).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"lr": -1.0}, "lr: expected at least 0"), ({"eps": -1.0}, "eps: expected at least 0")],
)
@pytest.mark.parametrize("make", [FusedAdagrad, FusedAdam])
def test_wrong_options(make: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(module_of(), **options)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="codebooks: expected MultiHashCodebook modules, found"):
        FusedAdagrad([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"betas: expected two numbers in \[0, 1\)"):
        FusedAdam(module_of(), betas=(0.9, 1.0))
    module = module_of(backend="reference")
    FusedAdagrad(module)
    with pytest.raises(ValueError, match="fused_step: expected None unless backend 'cpu' runs"):
        module(*batches(1)[0])
