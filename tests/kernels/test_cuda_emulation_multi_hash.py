"""The multi-hash ops in CUDA C++, as plain C++ on CPU tensors, against the definition."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tolerance
import torch
from gpu import poisoned_memory  # noqa: F401 (a fixture)
from multi_hash_cases import CHECK_VALUES, Case, check_arguments, crosses_of, fuzz, make, plain
from torch import Tensor

from mtlfast import _extension, reference

pytestmark = pytest.mark.skipif(
    not _extension.cpu_ops_available(), reason="built without the C++ part"
)


def lookup(emulated: Any, case: Case, **changed: Any) -> Tensor:
    o = case.options | changed
    names = ("codebook", "pair_weights", "codeword_weights")
    tensors = [case.tensors.get(name) for name in names]
    return emulated.multi_hash_lookup_forward(
        case.ids,
        *(None if t is None else t.detach() for t in tensors),
        o["num_hashes"],
        o["order"],
        o["key_fields"],
        o["hash"] == "siphash",
        o["first_hash"],
        o["pool"],
    )


def check_tolerance(emulated: Any, case: Case) -> None:
    exact, unfused = case.to(torch.float64).call(reference.multi_hash_lookup), case.call(plain)
    out = lookup(emulated, case)
    assert out.dtype == torch.float32
    tolerance.check("out", out.to(unfused.dtype), unfused, exact, tolerance.FORWARD)


# ---- indices ----


@pytest.mark.parametrize(("ids", "num_codewords", "expected"), CHECK_VALUES, ids=str)
def test_check_values(
    ids: dict[int, int],
    num_codewords: int,
    expected: list[int],
    emulated: Any,
) -> None:
    rows, order, at = check_arguments(ids)
    found = emulated.multi_hash_indices(rows, num_codewords, len(expected), order, None, False, 0)
    assert found[1, at].tolist() == expected


def test_crosses_of_any_fields(emulated: Any) -> None:
    source = random.Random(0)
    cases: list[tuple[int, int, list[int] | None]] = [(f, 2, None) for f in (2, 3, 4, 17, 40)]
    cases += [(f, 3, None) for f in (3, 4, 5, 9, 17)]
    for num_fields in (2, 3, 5, 9, 17, 70):
        sizes = (1, max(1, num_fields // 2), num_fields)
        cases += [(num_fields, 2, source.sample(range(num_fields), size)) for size in sizes]
    for num_fields, order, key_fields in cases:
        ids = torch.randint(0, 2**62, (num_fields, 2)).t()
        for num_codewords in (7, 2**32 - 1):
            expected = reference.multi_hash_indices(
                ids, num_codewords, num_hashes=2, order=order, key_fields=key_fields, first_hash=1
            )
            found = emulated.multi_hash_indices(ids, num_codewords, 2, order, key_fields, False, 1)
            assert torch.equal(found, expected), (num_fields, order, key_fields)


# ---- lookup ----


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fuzz(dtype: torch.dtype, emulated: Any) -> None:
    for seed in range(60):
        case = fuzz(seed, dtype)
        if case.ids.shape[0] <= 33 and case.options["hash"] == "mix64":
            check_tolerance(emulated, case)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("width", [1, 4, 16, 17, 32, 60, 64, 128, 130, 256, 500, 1024])
def test_every_width_of_group(width: int, emulated: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_tolerance(emulated, make(2, 4, 30, width, pair_weights="member", dtype=dtype))


def test_mixed_dtypes(emulated: Any) -> None:
    case = make(5, 4, pair_weights="shared", codeword_weights=True)
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    leaves = zip(case.tensors.items(), dtypes, strict=True)
    tensors = {n: t.detach().to(dtype) for (n, t), dtype in leaves}
    check_tolerance(emulated, Case(case.ids, tensors, case.options))


def test_more_fields_than_a_warp(emulated: Any) -> None:
    check_tolerance(emulated, make(2, 40, 1000, 4, pair_weights="member"))
    check_tolerance(emulated, make(1, 40, 1000, 16, key_fields=[39, 3, 35], num_hashes=1))


def test_strides_change_nothing(emulated: Any) -> None:
    case = make(5, 4, 50, private=True, pair_weights="member", codeword_weights=True)
    expected = lookup(emulated, case)

    def turned(t: Tensor) -> Tensor:
        return t.detach().movedim(-1, 0).contiguous().movedim(0, -1)

    def apart(t: Tensor) -> Tensor:
        wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"))
        wide[..., 1:-2] = t.detach()
        return wide[..., 1:-2]

    for change in (turned, apart):
        tensors = {n: change(t) for n, t in case.tensors.items()}
        other = Case(case.ids.t().contiguous().t(), tensors, case.options)
        assert torch.equal(lookup(emulated, other), expected)


def test_addresses_have_64_bits(emulated: Any) -> None:
    """Only the rows in use are ever touched."""
    width, n = 16, 2**27 + 12_345
    codebook = torch.empty(1, n, width, dtype=torch.bfloat16)
    ids = torch.randint(0, 2**40, (30, 3))
    found = reference.multi_hash_indices(ids, n, num_hashes=1)
    assert int(found.max()) * width > 2**31 - 10**8
    rows = found.unique()
    small = torch.randn(len(rows), width).bfloat16()
    codebook[0, rows] = small
    options = make(num_hashes=1).options
    out = lookup(emulated, Case(ids, {"codebook": codebook}, options))
    words = small.float()[torch.searchsorted(rows, found)].flatten(2)
    crosses = torch.tensor(crosses_of(3, 2, None))
    expected = torch.zeros(30, 3, width)
    for k in range(2):
        expected = expected.index_add(1, crosses[:, k], words)
    torch.testing.assert_close(out, expected)


def test_nothing_to_do(emulated: Any) -> None:
    assert lookup(emulated, make(0, 4)).shape == (0, 4, 32)
    assert lookup(emulated, make(0, 4, pool=False)).shape == (0, 6, 32)
    ids = torch.zeros(0, 4, dtype=torch.int64)
    assert emulated.multi_hash_indices(ids, 9, 2, 3, None, False, 0).shape == (0, 4, 2)


def test_a_negative_id_names_a_codeword_that_exists(emulated: Any) -> None:
    found = emulated.multi_hash_indices(torch.tensor([[-1, -(2**63)]]), 9, 3, 2, None, False, 0)
    assert bool(((found >= 0) & (found < 9)).all())


def test_what_it_refuses(emulated: Any) -> None:
    case = make(3, 4, pair_weights="shared", codeword_weights=True)
    for changed, text in (
        ({"hash": "siphash"}, "hash: expected 'mix64' on CUDA"),
        ({"order": 4}, "order: expected 2 or 3"),
        ({"key_fields": [9]}, "key_fields: expected distinct fields"),
        ({"num_hashes": 3}, "codeword_weights: expected shape"),
    ):
        with pytest.raises(RuntimeError, match=f"mtlfast: {text}"):
            lookup(emulated, case, **changed)
    with pytest.raises(RuntimeError, match="mtlfast: codebook: expected at most 1024 columns"):
        lookup(emulated, make(2, 3, 5, 1025))
    short = Case(case.ids, case.tensors | {"pair_weights": torch.ones(3, 5)}, case.options)
    with pytest.raises(RuntimeError, match="mtlfast: pair_weights: expected shape"):
        lookup(emulated, short)
