"""The fused CPU op against the reference: check values, fuzz, strides, threads, NaN, huge books."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tolerance
import torch
from leaves import dense, expanded
from multi_hash_cases import (
    CHECK_VALUES,
    SIPHASH_CHECK_VALUES,
    Case,
    check_arguments,
    fuzz,
    make,
    plain,
)
from torch import Tensor

import mtlfast
from mtlfast import _C, _extension, ops, reference

HALF = (torch.bfloat16, torch.float16)


def fused(case: Case, **options: Any) -> Tensor:
    return case.call(ops.multi_hash_lookup, backend="cpu", **options)


@pytest.fixture(params=_extension.build_config()["cpu_isas"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that was compiled and runs here."""
    try:
        _extension.set_cpu_capability(request.param)
    except ValueError:
        pytest.skip("not on this CPU")
    yield request.param
    _extension.set_cpu_capability("auto")


# ---- indices ----

IMPLEMENTATIONS = {
    "ops": ops.multi_hash_indices,
    "numpy": lambda ids, n, **options: torch.from_numpy(
        _C.multi_hash_indices(ids.numpy(), n, **options)
    ),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("ids", "num_codewords", "expected", "hash"),
    [
        *((*values, "mix64") for values in CHECK_VALUES),
        *((*values, "siphash") for values in SIPHASH_CHECK_VALUES),
    ],
    ids=str,
)
def test_check_values(
    implementation: str,
    ids: dict[int, int],
    num_codewords: int,
    expected: list[int],
    hash: str,
    isa: str,
) -> None:
    rows, order, at = check_arguments(ids)
    found = IMPLEMENTATIONS[implementation](
        rows, num_codewords, num_hashes=len(expected), order=order, hash=hash
    )
    assert found[1, at].tolist() == expected


@pytest.mark.parametrize("seed", range(12))
def test_indices_equal_the_reference(seed: int, isa: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, num_fields = [1, 7, 8, 9, 33][seed % 5], 3 + seed % 6
    # Strided, and not even in order.
    ids = torch.randint(
        0, 2 ** [3, 20, 63][seed % 3] - 1, (num_fields, 2 * batch), generator=generator
    ).t()[::2]
    num_codewords = [1, 1000, 2**31 + 3, 2**32 - 1][seed % 4]
    options: dict[str, Any] = {
        "num_hashes": 1 + seed % 4,
        "order": 2 + seed % 2,
        "first_hash": seed % 3,
    }
    if options["order"] == 2 and seed % 4 == 0:
        options["key_fields"] = [num_fields - 1, 0]
    for hash in ("mix64", "siphash"):
        expected = reference.multi_hash_indices(ids, num_codewords, hash=hash, **options)
        for implementation in IMPLEMENTATIONS.values():
            assert torch.equal(implementation(ids, num_codewords, hash=hash, **options), expected)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"ids": [[1, 2]]}, "ids: expected a NumPy array, found list"),
        ({"ids": np.ones((2, 3))}, "ids: expected dtype int64, found float64"),
        ({"ids": np.ones(3, np.int64)}, r"ids: expected shape \[B, F\], found 1 dimensions"),
        ({"ids": np.ones((2, 1), np.int64)}, "ids: expected at least 2 fields, found 1"),
        ({"ids": -np.eye(3, dtype=np.int64)}, r"found ids\[0, 0\] = -1"),
        ({"num_codewords": 2**32}, "num_codewords: .* found 4294967296"),
        ({"num_hashes": 0}, "num_hashes: expected an int of at least 1, found 0"),
        ({"order": 4}, "order: expected 2 or 3, found 4"),
        ({"key_fields": [3]}, r"key_fields: expected distinct fields in \[0, 3\), found 3"),
        ({"key_fields": []}, "key_fields: expected at least one field"),
        ({"hash": "md5"}, "hash: expected one of"),
        ({"hash": "siphash", "num_hashes": 12}, "num_hashes: expected at most 11"),
    ],
    ids=str,
)
def test_numpy_indices_refuse(changed: dict[str, Any], text: str) -> None:
    arguments = {"ids": np.ones((2, 3), np.int64), "num_codewords": 9, "num_hashes": 2} | changed
    with pytest.raises(ValueError, match=text):
        _C.multi_hash_indices(arguments.pop("ids"), arguments.pop("num_codewords"), **arguments)


# ---- lookup under the tolerance rule ----


def check_tolerance(case: Case) -> None:
    exact_case = case.to(torch.float64)
    exact = exact_case.call(reference.multi_hash_lookup)
    out, unfused = fused(case), case.call(plain)
    assert out.dtype == unfused.dtype
    tolerance.check("out", out, unfused, exact, tolerance.FORWARD)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    found, unfused_ones = case.gradients(out, upstream), case.gradients(unfused, upstream)
    for name, truth in case_gradients(exact_case, exact, upstream).items():
        assert found[name].dtype == case.tensors[name].dtype
        tolerance.check(name, found[name], unfused_ones[name], truth, tolerance.BACKWARD)
    sparse = case.gradients(fused(case, sparse_grad=True), upstream)
    gradient = sparse.pop("codebook")
    assert gradient.is_coalesced()
    assert (gradient.sparse_dim(), gradient.dense_dim()) == (2, 1)
    flat = gradient.indices()[0] * gradient.shape[1] + gradient.indices()[1]
    assert bool((flat[1:] > flat[:-1]).all())
    assert torch.equal(gradient.to_dense(), found["codebook"])
    for name, same in sparse.items():
        assert torch.equal(same, found[name])


def case_gradients(case: Case, out: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    return case.gradients(out, upstream.double())


@pytest.mark.parametrize("seed", range(60))
def test_fuzz(seed: int) -> None:
    check_tolerance(fuzz(seed))


@pytest.mark.parametrize("seed", range(60, 84))
@pytest.mark.parametrize("dtype", HALF)
def test_fuzz_low_precision(seed: int, dtype: torch.dtype) -> None:
    check_tolerance(fuzz(seed, dtype))


@pytest.mark.parametrize("seed", range(90, 100))
def test_fuzz_on_every_instruction_set(seed: int, isa: str) -> None:
    check_tolerance(fuzz(seed))


@pytest.mark.parametrize("width", [3, 8, 10, 13, 16, 20, 30, 32, 64])
@pytest.mark.parametrize("pair_weights", ["shared", "member"])
def test_widths_with_kernels_of_their_own(width: int, pair_weights: str, isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for weighted in (False, True):
            case = make(
                40, 6, 70, width, pair_weights=pair_weights, codeword_weights=weighted, dtype=dtype
            )
            check_tolerance(case)
            if pair_weights == "shared":
                case.options["pool"] = False
                check_tolerance(case)


def test_many_codewords_per_sample() -> None:
    """More than is fetched a sample ahead, and three fields per cross."""
    check_tolerance(make(20, 14, 3000, 64, order=3, num_hashes=4, pair_weights="member"))


def test_mixed_dtypes_promote_as_torch_does() -> None:
    case = make(20, 6, pair_weights="shared", codeword_weights=True)
    for dtypes in itertools.product([torch.float32, *HALF], repeat=3):
        leaves = zip(case.tensors.items(), dtypes, strict=True)
        mixed = Case(
            case.ids,
            {name: t.detach().to(dtype).requires_grad_() for (name, t), dtype in leaves},
            case.options,
        )
        check_tolerance(mixed)


def test_float64_runs_on_the_reference() -> None:
    case = make(dtype=torch.float64)
    assert case.call(ops.multi_hash_lookup).dtype == torch.float64
    with pytest.raises(ValueError, match=r"backend: expected .* found 'cpu': float64"):
        fused(case)


# ---- rows: hot, few, many ----


@pytest.mark.parametrize("num_codewords", [1, 2, 70, 3000, 10**6])
@pytest.mark.parametrize("vocabulary", [1, 30])
def test_hot_rows(num_codewords: int, vocabulary: int) -> None:
    """Rows with thousands of entries, in one or several parts of the sorted list."""
    case = make(900, 9, num_codewords, 4, vocabulary=vocabulary, pair_weights="shared")
    check_tolerance(case)


@pytest.mark.parametrize(
    "options",
    [
        {"pair_weights": "shared"},
        {"pair_weights": "member", "width": 10},
        {"order": 3, "codeword_weights": True, "private": True, "pair_weights": "member"},
        {"pool": False, "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_rows_summed_by_a_table(options: dict[str, Any], isa: str) -> None:
    """Hundreds of entries in every bucket of rows."""
    check_tolerance(make(700, 7, 5000, vocabulary=40, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"private": True, "num_hashes": 3},
        {"width": 10},
        {"width": 32, "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_weights_from_the_entries_of_a_large_codebook(options: dict[str, Any], isa: str) -> None:
    """Beyond the near caches: pair weights' gradients are made where rows are summed."""
    check_tolerance(
        make(700, 7, 40_000, **{"width": 16, "vocabulary": 40, "pair_weights": "shared", **options})
    )


def test_weights_from_entries_some_of_which_are_sorted() -> None:
    """One row has more entries than a table takes."""
    case = make(4200, 5, 40_000, 16, vocabulary=4000, pair_weights="shared")
    case.ids[:, :2] = 3
    check_tolerance(case)


def test_sorted_by_more_than_one_digit() -> None:
    case = make(600, 7, 2**24 + 3, 1, private=True, vocabulary=400)
    with torch.no_grad():
        case.tensors["codebook"].zero_()
    upstream = torch.randn(600, 7, 2)
    gradient = case.gradients(fused(case, sparse_grad=True), upstream)["codebook"]
    expected = case.gradients(case.call(reference.multi_hash_lookup, sparse_grad=True), upstream)
    assert torch.equal(gradient.indices(), expected["codebook"].indices())
    torch.testing.assert_close(gradient.values(), expected["codebook"].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_than_2_31_elements(dtype: torch.dtype) -> None:
    """Rows on both sides; only those in use are ever touched."""
    width, n = 16, 2**27 + 12_345
    codebook = torch.empty(1, n, width, dtype=dtype)
    assert codebook.numel() > 2**31
    ids = torch.randint(0, 2**40, (50, 4))
    indices = ops.multi_hash_indices(ids, n, num_hashes=2)
    assert int(indices.max()) * width > 2**31 - 10**8
    rows = indices.unique()
    small = torch.randn(len(rows), width).to(dtype)
    codebook[0, rows] = small
    codebook.requires_grad_()
    out = ops.multi_hash_lookup(ids, codebook, num_hashes=2, sparse_grad=True, backend="cpu")
    upstream = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, codebook, upstream)

    small.requires_grad_()
    words = small.float()[torch.searchsorted(rows, indices)].flatten(2)
    crosses = torch.tensor(reference.field_crosses(4))
    expected = torch.zeros(50, 4, 2 * width)
    for k in range(2):
        expected = expected.index_add(1, crosses[:, k], words)
    torch.testing.assert_close(out.float(), expected.to(dtype).float(), rtol=1e-2, atol=1e-4)
    (of_small,) = torch.autograd.grad(expected, small, upstream.float())
    assert torch.equal(gradient.indices()[1], rows)
    torch.testing.assert_close(gradient.values(), of_small, rtol=1e-2, atol=1e-3)


# ---- strides, poison, NaN, threads ----


def strided(t: Tensor, kind: str) -> Tensor:
    t = t.detach()
    if kind == "permuted":
        return t.movedim(-1, 0).contiguous().movedim(0, -1)
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 3), float("nan"), dtype=t.dtype)
    wide[..., : t.shape[-1]] = t
    return wide[..., : t.shape[-1]]


@pytest.mark.parametrize("kind", ["permuted", "rows apart"])
@pytest.mark.parametrize("private", [False, True])
def test_strides_change_nothing(kind: str, private: bool) -> None:
    case = make(30, 6, 50, 16, private=private, pair_weights="member", codeword_weights=True)
    tensors = {n: strided(t, kind).requires_grad_() for n, t in case.tensors.items()}
    other = Case(case.ids.t().contiguous().t(), tensors, case.options)
    out = fused(case)
    assert torch.equal(fused(other), out)
    upstream = torch.randn_like(out)
    expected = case.gradients(out, upstream)
    for gradient in (upstream, strided(upstream, kind)):
        for name, found in other.gradients(fused(other), gradient).items():
            assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("options", [{}, {"pool": False}, {"sparse_grad": True}], ids=str)
@pytest.mark.parametrize("private", [False, True])
def test_expanded_inputs(options: dict[str, Any], private: bool) -> None:
    case = make(30, 6, 50, 16, private=private, pair_weights="shared", codeword_weights=True)
    for name, t in case.tensors.items():
        for dim in range(t.dim() - 1):
            tensors = {**case.tensors, name: expanded(t, dim)}
            copies = {n: dense(t) for n, t in tensors.items()}
            every_option = {**case.options, **options}
            other, same = (Case(case.ids, each, every_option) for each in (tensors, copies))
            out, expected = fused(other), fused(same)
            assert torch.equal(out, expected)
            upstream = torch.randn_like(out)
            truth = same.gradients(expected, upstream)
            for of, found in other.gradients(out, upstream).items():
                assert torch.equal(found.to_dense(), truth[of].to_dense()), (name, dim, of)


def test_expanded_upstream_gradients() -> None:
    case = make(30, 6, 50, 16, pair_weights="shared")
    ones = torch.ones(30, 6, 32)
    expected = case.gradients(fused(case), ones)
    for name, found in case.gradients(fused(case), torch.ones(()).expand(30, 6, 32)).items():
        assert torch.equal(found, expected[name])


@pytest.mark.parametrize("options", [{}, {"pool": False}, {"sparse_grad": True}], ids=str)
def test_every_element_is_written(options: dict[str, Any]) -> None:
    case = make(37, 6, 200, 10, pair_weights="shared", codeword_weights=True)
    case.options |= options
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        poison = [torch.full((60_000,), float("nan")) for _ in range(4)]
        del poison
        out = fused(case)
        gradients = case.gradients(out, torch.randn_like(out))
    finally:
        torch.use_deterministic_algorithms(False)
    assert bool(torch.isfinite(out).all())
    for gradient in gradients.values():
        assert bool(torch.isfinite(gradient.to_dense()).all())


@pytest.mark.parametrize("pool", [True, False])
def test_results_that_are_written_past_the_caches(pool: bool, isa: str) -> None:
    """One row per codeword used, 17 MB of them; parts of the batch are small enough for caches."""
    sizes = (2050, 17, 3000, 16)
    case = make(*sizes, num_hashes=1, pair_weights="shared", codeword_weights=True, pool=pool)
    out = fused(case)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = case.gradients(out, upstream)["codeword_weights"]
    for first in range(0, 2050, 500):
        part = case.samples(slice(first, first + 500))
        expected = fused(part)
        assert torch.equal(out[first : first + 500], expected)
        gradients = part.gradients(expected, upstream[first : first + 500])
        assert torch.equal(found[first : first + 500], gradients["codeword_weights"])


@pytest.mark.parametrize("name", ["pair_weights", "codeword_weights", "upstream"])
def test_nan_stays_in_its_sample(name: str) -> None:
    case = make(20, 6, 50, 10, vocabulary=5, pair_weights="shared", codeword_weights=True)
    upstream = torch.randn(20, 6, 20)
    clean_out = fused(case)
    clean = case.gradients(clean_out, upstream)
    with torch.no_grad():
        (upstream if name == "upstream" else case.tensors[name])[3, 2, ...] = float("nan")
    out = fused(case)
    found = case.gradients(out, upstream)
    others = torch.arange(20) != 3
    assert torch.equal(out[others], clean_out[others])
    assert bool(out[3].isnan().any()) == (name != "upstream")
    for weights in ("pair_weights", "codeword_weights"):
        assert torch.equal(found[weights][others], clean[weights][others])
    indices = ops.multi_hash_indices(case.ids, 50, num_hashes=2)
    untouched = ~torch.isin(torch.arange(50), indices[3])
    gradient = found["codebook"][0]
    assert torch.equal(gradient[untouched], clean["codebook"][0][untouched])
    assert bool(gradient.isnan().any())


def test_nan_in_a_codeword_reaches_its_users_only() -> None:
    case = make(20, 6, 50, 10, vocabulary=5)
    indices = ops.multi_hash_indices(case.ids, 50, num_hashes=2)
    row = int(indices[0, 0, 0])
    clean = fused(case)
    with torch.no_grad():
        case.tensors["codebook"][0, row] = float("nan")
    users = (indices == row).flatten(1).any(1)
    out = fused(case)
    assert torch.equal(out.isnan().flatten(1).any(1), users)
    assert torch.equal(out[~users], clean[~users])


@pytest.mark.parametrize("sparse_grad", [False, True])
@pytest.mark.parametrize("num_codewords", [3, 1000, 200_000])
def test_any_number_of_threads_gives_the_same_bits(sparse_grad: bool, num_codewords: int) -> None:
    case = make(700, 8, num_codewords, 16, vocabulary=40, pair_weights="shared")
    upstream = torch.randn(700, 8, 32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            out = fused(case, sparse_grad=sparse_grad)
            gradients = case.gradients(out, upstream)
            results.append((out, *(gradient.to_dense() for gradient in gradients.values())))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- doors ----


def test_explain() -> None:
    case = make()
    answer = case.call(lambda *args, **kw: mtlfast.explain(ops.multi_hash_lookup, *args, **kw))
    assert answer.backend == "cpu"
    case = make(dtype=torch.float64)
    answer = case.call(lambda *args, **kw: mtlfast.explain("multi_hash_lookup", *args, **kw))
    assert answer.backend == "reference"
    assert "float64" in answer.reason


def test_only_what_is_needed_is_computed() -> None:
    case = make(pair_weights="shared", codeword_weights=True)
    out = fused(case)
    upstream = torch.randn_like(out)
    everything = case.gradients(out, upstream)
    for name in case.tensors:
        for leaf, tensor in case.tensors.items():
            tensor.requires_grad_(leaf == name)
        for sparse_grad in (False, True):
            alone = fused(case, sparse_grad=sparse_grad)
            (found,) = torch.autograd.grad(alone, case.tensors[name], upstream)
            assert torch.equal(found.to_dense(), everything[name])
