"""The multi-hash reference against Python's integers, loops, and published check values."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from multi_hash_cases import (
    CHECK_VALUES,
    SIPHASH_CHECK_VALUES,
    Case,
    check_arguments,
    crosses_of,
    fuzz,
    integer_index,
    make,
)
from torch import Tensor

from mtlfast import ops, reference
from mtlfast.reference.siphash import key_strings, siphash

# ---- indices ----


@pytest.mark.parametrize(("ids", "num_codewords", "expected"), CHECK_VALUES, ids=str)
def test_check_values(ids: dict[int, int], num_codewords: int, expected: list[int]) -> None:
    rows, order, at = check_arguments(ids)
    found = reference.multi_hash_indices(rows, num_codewords, num_hashes=len(expected), order=order)
    assert found[1, at].tolist() == expected


@pytest.mark.parametrize(("ids", "num_codewords", "expected"), SIPHASH_CHECK_VALUES, ids=str)
def test_siphash_check_values(ids: dict[int, int], num_codewords: int, expected: list[int]) -> None:
    rows, _, at = check_arguments(ids)
    found = reference.multi_hash_indices(rows, num_codewords, num_hashes=2, hash="siphash")
    assert found[1, at].tolist() == expected


def test_siphash_itself() -> None:
    key = bytes(range(16))
    halves = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    (found,) = siphash([bytes(range(15))], halves).tolist()
    assert found % 2**64 == 0xA129CA6149BE45E5
    found = siphash([b"a", b"b", b"c"], (98765, 132)).tolist()
    expected = [7157389809176466784, 15805638358933211562, 18100027895074076528]
    assert [value % 2**64 for value in found] == expected


def test_siphash_of_messages_of_different_lengths() -> None:
    """Each as if it were alone; among them lengths around a whole word."""
    messages = [b"x" * n for n in (0, 1, 6, 7, 8, 9, 15, 16, 17, 31)]
    together = siphash(messages, (1, 2)).tolist()
    assert together == [siphash([message], (1, 2)).item() for message in messages]
    assert len(set(together)) == len(messages)


def test_key_strings() -> None:
    found = key_strings(torch.tensor([[5, 7, 0]]), [(0, 1), (1, 2)])
    assert found == [b"0_5_1_7", b"1_7_2_0"]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("num_codewords", [1, 7, 2**16, 2**31 + 11, 2**32 - 1])
def test_indices_equal_integer_arithmetic(order: int, num_codewords: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 2**63 - 1, (4, 5), generator=generator)
    found = reference.multi_hash_indices(
        ids, num_codewords, num_hashes=3, order=order, first_hash=2
    )
    for row, indices in zip(ids.tolist(), found.tolist(), strict=True):
        for cross, of_cross in zip(crosses_of(5, order, None), indices, strict=True):
            pairs = [(f, row[f]) for f in cross]
            assert of_cross == [integer_index(pairs, s + 2, num_codewords) for s in range(3)]


def test_indices_are_spread_evenly() -> None:
    """Each of 64 codewords gets its share of 40,000 crosses of small consecutive ids."""
    ids = torch.cartesian_prod(torch.arange(200), torch.arange(200))
    indices = reference.multi_hash_indices(ids, 64, num_hashes=2)
    counts = torch.stack([torch.bincount(indices[:, 0, s], minlength=64) for s in range(2)])
    chi_square = ((counts - 625.0) ** 2 / 625).sum(1)
    assert bool((chi_square < 120).all())  # 63 degrees of freedom: 1e-5 above 120
    both = indices[:, 0, 0] * 64 + indices[:, 0, 1]
    assert len(both.unique()) == 64 * 64


def test_field_crosses() -> None:
    assert reference.field_crosses(3) == ((0, 1), (0, 2), (1, 2))
    assert reference.field_crosses(4, 3) == ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))
    for num_fields, keys in ((6, [4]), (6, [0, 5]), (17, [3, 9, 16])):
        found = reference.field_crosses(num_fields, 2, keys)
        assert list(found) == crosses_of(num_fields, 2, keys)
        assert len(found) == (2 * num_fields - len(keys) - 1) * len(keys) // 2
    assert reference.field_crosses(5, 2, range(5)) == reference.field_crosses(5)


def test_key_fields_select_among_all_pairs() -> None:
    ids = torch.randint(0, 50, (6, 5))
    every = reference.multi_hash_indices(ids, 1000, num_hashes=2)
    some = reference.multi_hash_indices(ids, 1000, num_hashes=2, key_fields=[3, 1])
    kept = [1 in cross or 3 in cross for cross in itertools.combinations(range(5), 2)]
    assert torch.equal(some, every[:, torch.tensor(kept)])


# ---- lookup ----


def naive(case: Case) -> Tensor:
    """Sample by sample, pair by pair, hash by hash."""
    ids, tensors, options = case.ids, case.tensors, case.options
    codebook = tensors["codebook"]
    books, n, width = codebook.shape
    num_hashes, num_fields = options["num_hashes"], ids.shape[1]
    crosses = crosses_of(num_fields, options["order"], options["key_fields"])
    names = ("num_hashes", "order", "key_fields", "hash", "first_hash")
    indices = reference.multi_hash_indices(ids, n, **{name: options[name] for name in names})
    rows = []
    for b in range(len(ids)):
        fields = [codebook.new_zeros(num_hashes * width) for _ in range(num_fields)]
        pairs = []
        for p, cross in enumerate(crosses):
            words = [codebook[s if books > 1 else 0, indices[b, p, s]] for s in range(num_hashes)]
            memory = torch.cat(words)
            if "codeword_weights" in tensors:
                memory = memory * tensors["codeword_weights"][b, p]
            own = [1.0] * len(cross)
            if "pair_weights" in tensors:
                own = tensors["pair_weights"][b, p].expand(len(cross))
            pairs.append(memory * own[0])
            for k, f in enumerate(cross):
                fields[f] = fields[f] + memory * own[k]
        rows.append(torch.stack(fields if options["pool"] else pairs))
    if rows:
        return torch.stack(rows)
    return codebook.new_zeros(
        0, num_fields if options["pool"] else len(crosses), num_hashes * width
    )


@pytest.mark.parametrize("seed", range(24))
def test_equals_loops(seed: int) -> None:
    case = fuzz(seed, torch.float64)
    case.ids = case.ids[:3]
    for name in ("pair_weights", "codeword_weights"):
        if name in case.tensors:
            case.tensors[name] = case.tensors[name].detach()[:3].requires_grad_()
    found, expected = case.call(reference.multi_hash_lookup), naive(case)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if not len(case.ids):
        return
    upstream = torch.randn_like(found)
    gradients = case.gradients(found, upstream)
    for name, truth in case.gradients(expected, upstream).items():
        torch.testing.assert_close(gradients[name], truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"pair_weights": "shared"},
        {"pair_weights": "member", "order": 3, "private": True},
        {"pair_weights": "shared", "codeword_weights": True, "key_fields": [1]},
        {"pair_weights": "shared", "codeword_weights": True, "pool": False},
    ],
    ids=str,
)
def test_gradcheck(options: dict[str, Any]) -> None:
    case = make(3, 4, 11, 2, dtype=torch.float64, **options)

    def function(*tensors: Tensor) -> Tensor:
        with_these = Case(case.ids, dict(zip(case.tensors, tensors, strict=True)), case.options)
        return with_these.call(reference.multi_hash_lookup)

    leaves = tuple(case.tensors.values())
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_one_hash_is_an_embedding_lookup() -> None:
    case = make(num_hashes=1, pool=False)
    indices = reference.multi_hash_indices(case.ids, 40, num_hashes=1)
    expected = case.tensors["codebook"][0][indices[..., 0]]
    assert torch.equal(case.call(reference.multi_hash_lookup), expected)


def test_shrink_then_project_equals_project_then_shrink() -> None:
    case = make(pair_weights="shared", codeword_weights=True, dtype=torch.float64)
    weight = torch.randn(32, 6, dtype=torch.float64)
    shrunk = case.call(reference.multi_hash_lookup) @ weight
    case.options["pool"] = False
    projected = case.call(reference.multi_hash_lookup) @ weight
    expected = torch.zeros_like(shrunk)
    for p, (i, j) in enumerate(crosses_of(5, 2, None)):
        expected[:, i] += projected[:, p]
        expected[:, j] += projected[:, p]
    torch.testing.assert_close(shrunk, expected)
    upstream = torch.randn_like(shrunk)
    gradients = case.gradients(expected, upstream)
    for name, found in case.gradients(shrunk, upstream).items():
        torch.testing.assert_close(found, gradients[name])


@pytest.mark.parametrize("private", [False, True])
def test_sparse_gradient(private: bool) -> None:
    case = make(20, private=private, pair_weights="shared")
    upstream = torch.randn(20, 5, 32)
    dense = case.gradients(case.call(reference.multi_hash_lookup), upstream)
    found = case.gradients(case.call(reference.multi_hash_lookup, sparse_grad=True), upstream)
    gradient = found["codebook"]
    assert gradient.is_coalesced()
    assert (gradient.sparse_dim(), gradient.dense_dim()) == (2, 1)
    assert torch.equal(gradient.indices(), gradient.indices().unique(dim=1))
    torch.testing.assert_close(gradient.to_dense(), dense["codebook"])
    assert torch.equal(found["pair_weights"], dense["pair_weights"])


def test_low_precision_is_rounded_once() -> None:
    case = make(50, 8, pair_weights="shared", dtype=torch.bfloat16)
    exact = case.to(torch.float64).call(reference.multi_hash_lookup)
    found = case.call(reference.multi_hash_lookup)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact.float().to(torch.bfloat16), rtol=0.004, atol=1e-6)


# ---- errors ----

IDS = torch.ones(2, 4, dtype=torch.int64)
BOOK = torch.zeros(1, 10, 3)


@pytest.mark.parametrize("module", [reference, ops])
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"ids": IDS.float()}, r"ids: expected dtype int64, found a float32 tensor"),
        ({"ids": IDS[0]}, r"ids: expected shape \[B, F\], found shape \[4\]"),
        ({"ids": IDS[:, :1]}, "ids: expected at least 2 fields, found 1"),
        ({"ids": -IDS}, r"ids: expected no negative id, found ids\[0, 0\] = -1"),
        ({"ids": [1, 2]}, "ids: expected a tensor, found list"),
        ({"num_codewords": 0}, r"num_codewords: expected from 1 to 2\*\*32 - 1 codewords, found 0"),
        ({"num_codewords": 2**32}, "num_codewords: .* found 4294967296"),
        ({"num_codewords": 2.0}, "num_codewords: expected an int, found float"),
        ({"num_hashes": 0}, "num_hashes: expected an int of at least 1, found 0"),
        ({"order": 4}, "order: expected 2 or 3, found 4"),
        ({"key_fields": []}, r"key_fields: expected distinct fields in \[0, 4\), at least one"),
        ({"key_fields": [4]}, r"key_fields: .* found \[4\]"),
        ({"key_fields": [1, 1]}, r"key_fields: .* found \[1, 1\]"),
        ({"key_fields": [1], "order": 3}, r"key_fields: expected None unless order is 2"),
        ({"hash": "md5"}, "hash: expected one of .* found 'md5'"),
        ({"hash": "siphash", "num_hashes": 12}, "num_hashes: expected at most 11"),
        ({"first_hash": -1}, "first_hash: expected an int of at least 0, found -1"),
    ],
    ids=str,
)
def test_indices_refuse(module: Any, changed: dict[str, Any], text: str) -> None:
    arguments = {"ids": IDS, "num_codewords": 10, "num_hashes": 2} | changed
    with pytest.raises(ValueError, match=text):
        module.multi_hash_indices(**arguments)


@pytest.mark.parametrize("module", [reference, ops])
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"ids": -IDS}, r"ids: expected no negative id, found ids\[0, 0\] = -1"),
        ({"codebook": BOOK[0]}, r"codebook: expected shape \[K = 1 or 2, n, c\]"),
        ({"codebook": BOOK.expand(3, 10, 3)}, r"codebook: .* found shape \[3, 10, 3\]"),
        ({"codebook": BOOK[:, :0]}, r"codebook: expected from 1 to 2\*\*32 - 1 codewords, found 0"),
        ({"codebook": BOOK.long()}, "codebook: expected dtype float32, .* found a int64"),
        ({"codebook": BOOK.to("meta")}, "codebook: expected device cpu .* found meta"),
        ({"pair_weights": torch.ones(2, 5)}, r"expected shape \[2, 6\] or \[2, 6, 2\]"),
        (
            {"pair_weights": torch.ones(2, 6, 2), "pool": False},
            r"pair_weights: expected .*\[2, 6\]",
        ),
        (
            {"codeword_weights": torch.ones(2, 6, 3)},
            r"codeword_weights: expected shape \[2, 6, 6\]",
        ),
    ],
    ids=str,
)
def test_lookup_refuses(module: Any, changed: dict[str, Any], text: str) -> None:
    arguments = {"ids": IDS, "codebook": BOOK, "num_hashes": 2} | changed
    with pytest.raises(ValueError, match=text):
        module.multi_hash_lookup(**arguments)
