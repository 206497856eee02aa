"""MultiHashCodebook: HCNet's formulas pair by pair, its checkpoint, sparse gradients."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlfast.nn import MultiHashCodebook
from mtlfast.reference import multi_hash_indices

B, NUM_FIELDS, N, C, D = 9, 5, 50, 4, 3


def module_of(**options: Any) -> MultiHashCodebook:
    torch.manual_seed(0)
    module = MultiHashCodebook(NUM_FIELDS, N, C, D, **{"backend": "reference"} | options)
    for parameter in module.parameters():  # larger than the initial weights: differences show
        torch.nn.init.normal_(parameter)
    return module.double()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 20, (B, NUM_FIELDS), generator=generator)
    return ids, torch.randn(B, NUM_FIELDS, D, generator=generator, dtype=torch.float64)


def two_linear(module: Any, x: Tensor) -> Tensor:
    return torch.relu(x @ module.linear1.weight.T) @ module.linear2.weight.T


def expected(module: MultiHashCodebook, ids: Tensor, embeddings: Tensor) -> Tensor:
    """Restored first, pair by pair, and shrunk after, as the paper writes it."""
    rows: list[Tensor] = []
    for i, order in enumerate(module.orders):
        crosses = list(itertools.combinations(range(NUM_FIELDS), order))
        if module.key_fields is not None:
            crosses = [cross for cross in crosses if set(cross) & set(module.key_fields)]
        indices = multi_hash_indices(
            ids,
            N,
            num_hashes=module.num_hashes,
            order=order,
            key_fields=module.key_fields,
            hash=module.hash,
        )
        memories = []
        for p, cross in enumerate(crosses):
            words = torch.cat(
                [
                    module.codebook[i, s if module.sharing == "private" else 0, indices[:, p, s]]
                    for s in range(module.num_hashes)
                ],
                -1,
            )
            if module.restoring == "attentive":
                words = words * two_linear(module.attend[i], embeddings[:, cross].flatten(1))
            memories.append(words @ module.restore.weight.T)
        if module.shrinking == "none":
            rows += memories
            continue
        a = torch.ones(B, len(crosses), dtype=torch.float64)
        if module.shrinking != "sum":
            a = two_linear(module.shrink[i], embeddings.flatten(1))
        for f in range(NUM_FIELDS):
            of_field = [p for p, cross in enumerate(crosses) if f in cross]
            weights = a[:, of_field]
            if module.shrinking == "softmax":
                weights = torch.softmax(weights / module.temperature, -1)
            rows.append(sum(weights[:, k, None] * memories[p] for k, p in enumerate(of_field)))
    return torch.stack(rows, 1)


OPTIONS: list[dict[str, Any]] = [
    {"restoring": restoring, "shrinking": shrinking, **others}
    for restoring in ("linear", "attentive")
    for shrinking in ("attentive", "softmax", "sum", "none")
    for others in (
        {},
        {"orders": (2, 3), "sharing": "private", "temperature": 0.5},
        {"key_fields": (3, 1), "num_hashes": 3, "out_dim": 6},
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_formula(options: dict[str, Any]) -> None:
    module, (ids, embeddings) = module_of(**options), inputs()
    embeddings.requires_grad_()
    found, truth = module(ids, embeddings), expected(module, ids, embeddings)
    torch.testing.assert_close(found, truth)
    upstream = torch.randn_like(found)
    leaves = [*module.parameters()]
    if module.shrink or module.attend:
        leaves.append(embeddings)
    for one, two in zip(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(truth, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_attentive_weights_of_some_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (ids, embeddings) = module_of(restoring="attentive", orders=(2, 3)), inputs()
    at_once = module(ids, embeddings)
    monkeypatch.setattr("mtlfast.nn.multi_hash_codebook._MOST_ATTENTIVE_WEIGHTS", 10 * 2 * C * 4)
    assert module._samples_at_once(0) == 4
    with torch.no_grad():
        torch.testing.assert_close(module(ids, embeddings), at_once)


def test_siphash() -> None:
    module, (ids, embeddings) = module_of(hash="siphash"), inputs()
    torch.testing.assert_close(module(ids, embeddings), expected(module, ids, embeddings))


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        (
            {},
            {
                "codebook": (1, 1, N, C),
                "restore.weight": (C, 2 * C),
                "shrink.0.linear1.weight": (NUM_FIELDS * D, NUM_FIELDS * D),
                "shrink.0.linear2.weight": (10, NUM_FIELDS * D),
            },
        ),
        (
            {
                "orders": (2, 3),
                "sharing": "private",
                "restoring": "attentive",
                "shrinking": "sum",
                "num_hashes": 3,
                "out_dim": 7,
            },
            {
                "codebook": (2, 3, N, C),
                "restore.weight": (7, 3 * C),
                "attend.0.linear1.weight": (2 * D, 2 * D),
                "attend.0.linear2.weight": (3 * C, 2 * D),
                "attend.1.linear1.weight": (3 * D, 3 * D),
                "attend.1.linear2.weight": (3 * C, 3 * D),
            },
        ),
        (
            {"key_fields": [0], "shrinking": "softmax"},
            {
                "codebook": (1, 1, N, C),
                "restore.weight": (C, 2 * C),
                "shrink.0.linear1.weight": (NUM_FIELDS * D, NUM_FIELDS * D),
                "shrink.0.linear2.weight": (4, NUM_FIELDS * D),
            },
        ),
    ],
    ids=str,
)
def test_state_dict(options: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    module = MultiHashCodebook(NUM_FIELDS, N, C, D, **options)
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == shapes


def test_returned_weights() -> None:
    module, (ids, embeddings) = module_of(shrinking="softmax", orders=(2, 3)), inputs()
    out, weights = module(ids, embeddings, return_weights=True)
    assert torch.equal(out, module(ids, embeddings))
    for order, of_order in zip(module.orders, weights, strict=True):
        crosses = torch.tensor(list(itertools.combinations(range(NUM_FIELDS), order)))
        sums = torch.zeros(B, NUM_FIELDS, dtype=torch.float64)
        for k in range(order):
            sums = sums.index_add(1, crosses[:, k], of_order[..., k])
        torch.testing.assert_close(sums, torch.ones_like(sums))
    assert module_of(shrinking="sum")(ids, embeddings, return_weights=True).pair_weights == (None,)


@pytest.mark.parametrize("orders", [(2,), (3, 2)])
@pytest.mark.parametrize("sharing", ["shared", "private"])
def test_sparse_gradient(orders: tuple[int, ...], sharing: str) -> None:
    dense = module_of(orders=orders, sharing=sharing)
    module = module_of(orders=orders, sharing=sharing, sparse_grad=True)
    module.load_state_dict(dense.state_dict())
    module = copy.deepcopy(module)
    ids, embeddings = inputs()
    for _ in range(2):  # gradients add up
        for one in (dense, module):
            one(ids, embeddings).square().sum().backward()
        gradient = module.codebook.grad
        assert gradient.is_coalesced()
        assert (gradient.sparse_dim(), gradient.dense_dim()) == (3, 1)
        torch.testing.assert_close(gradient.to_dense(), dense.codebook.grad)
        assert gradient._nnz() == int(dense.codebook.grad.any(-1).sum())
    (alone,) = torch.autograd.grad(module(ids, embeddings).sum(), module.codebook)
    assert alone.is_coalesced()


def test_first_hash_moves_every_index() -> None:
    ids, embeddings = inputs()
    one, two = module_of(num_hashes=4, shrinking="none"), module_of(shrinking="none", first_hash=2)
    with torch.no_grad():
        two.codebook.copy_(one.codebook)
        one.restore.weight.zero_()
        one.restore.weight[:, 2 * C :] = two.restore.weight
    torch.testing.assert_close(one(ids, embeddings), two(ids, embeddings))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_codewords": 0}, "num_codewords: expected a positive int, found 0"),
        ({"num_codewords": 2**32}, "num_codewords: expected from 1 to 2.*32 - 1 codewords"),
        ({"num_fields": True}, "num_fields: expected a positive int, found True"),
        ({"num_hashes": 12, "hash": "siphash"}, "num_hashes: expected at most 11 hash functions"),
        ({"orders": ()}, "orders: expected distinct orders, at least one"),
        ({"orders": (4,)}, "order: expected 2 or 3, found 4"),
        (
            {"orders": (2, 3), "key_fields": [1]},
            r"key_fields: expected None unless orders is \(2,\)",
        ),
        ({"sharing": "some"}, "sharing: expected one of .* found 'some'"),
        ({"restoring": "some"}, "restoring: expected one of"),
        ({"shrinking": "some"}, "shrinking: expected one of"),
        ({"hash": "some"}, "hash: expected one of"),
        ({"temperature": 0.0}, "temperature: expected a positive float"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    sizes = {"num_fields": 5, "num_codewords": 9, "codeword_dim": 4, "embed_dim": 3}
    with pytest.raises(ValueError, match=text):
        MultiHashCodebook(**sizes | options)


def test_wrong_inputs() -> None:
    module, (ids, embeddings) = module_of(), inputs()
    with pytest.raises(ValueError, match=r"ids: expected shape \[B, 5\], found shape \[9, 4\]"):
        module(ids[:, :4], embeddings)
    with pytest.raises(ValueError, match=r"embeddings: expected shape \[B = 9, 5, 3\]"):
        module(ids, embeddings[..., :2])
    with pytest.raises(ValueError, match=r"embeddings: .* found shape \[8, 5, 3\]"):
        module_of(shrinking="sum")(ids, embeddings[:8])  # which reads no embedding
