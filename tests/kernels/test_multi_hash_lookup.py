"""The GPU kernels against the definition: on a GPU where there is one, else interpreted.

Interpreted programs cost a tenth of a second and more, so cases are tiny: what a tile does is the
same for its first row and for its last.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import gpu
import pytest
import tolerance
import torch
from gpu import poisoned_memory  # noqa: F401 (a fixture)
from leaves import dense, expanded
from multi_hash_cases import CHECK_VALUES, Case, check_arguments, crosses_of, make, plain
from torch import Tensor

import mtlfast
from mtlfast import _extension, ops, reference
from mtlfast.nn import MultiHashCodebook
from mtlfast.ops.multi_hash_lookup import GPU_MAX_WIDTH

pytestmark = pytest.mark.skipif(not gpu.BACKENDS, reason="triton is not installed")
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(params=[name for name in gpu.BACKENDS if name in GPU_MAX_WIDTH])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def indices(backend: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """``multi_hash_indices`` of that backend, back on the CPU."""
    monkeypatch.setenv("MTLFAST_BACKEND", backend)

    def found(ids: Tensor, *args: Any, **options: Any) -> Tensor:
        return ops.multi_hash_indices(ids.to(gpu.DEVICE), *args, **options).cpu()

    return found


def on_device(case: Case) -> Case:
    tensors = {n: t.detach().to(gpu.DEVICE).requires_grad_() for n, t in case.tensors.items()}
    return Case(case.ids.to(gpu.DEVICE), tensors, case.options)


def fused(case: Case, backend: str, **options: Any) -> Tensor:
    return case.call(ops.multi_hash_lookup, backend=backend, **options)


def upstream_of(out: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)


def check_tolerance(case: Case, backend: str, *, sparse: bool = True) -> None:
    """``case`` is on the CPU, and so are the truth and plain PyTorch."""
    exact_case, own = case.to(torch.float64), on_device(case)
    exact, unfused = exact_case.call(reference.multi_hash_lookup), case.call(plain)
    out = fused(own, backend)
    assert out.dtype == unfused.dtype
    tolerance.check("out", out.cpu(), unfused, exact, tolerance.FORWARD)
    upstream = upstream_of(out)
    found = own.gradients(out, upstream.to(gpu.DEVICE))
    unfused_ones = case.gradients(unfused, upstream)
    for name, truth in exact_case.gradients(exact, upstream.double()).items():
        assert found[name].dtype == case.tensors[name].dtype, name
        tolerance.check(name, found[name].cpu(), unfused_ones[name], truth, tolerance.BACKWARD)
    if sparse:
        gradient = sparse_gradient(own, backend, upstream)
        assert torch.equal(gradient.to_dense(), found["codebook"])


def sparse_gradient(case: Case, backend: str, upstream: Tensor) -> Tensor:
    """By the op itself, without a forward."""
    op = getattr(torch.ops.mtlfast, f"{op_name(backend)}_backward_sparse").default
    arguments = inputs_of(case)
    where, values, *_ = op(upstream.to(gpu.DEVICE), *arguments, False, False)
    shape = tuple(case.tensors["codebook"].shape)
    flat = where[0] * shape[1] + where[1]
    assert bool((flat[1:] > flat[:-1]).all())
    assert values.dtype == case.tensors["codebook"].dtype
    return torch.sparse_coo_tensor(where, values, shape, check_invariants=True, is_coalesced=True)


def op_name(backend: str) -> str:
    return "multi_hash_lookup_triton" if backend == "triton" else "multi_hash_lookup"


def inputs_of(case: Case, *, detached: bool = True) -> tuple[Any, ...]:
    """The arguments of the forward op."""
    o = case.options
    names = ("codebook", "pair_weights", "codeword_weights")
    tensors = [case.tensors.get(name) for name in names]
    if detached:
        tensors = [None if t is None else t.detach() for t in tensors]
    keys = None if o["key_fields"] is None else list(o["key_fields"])
    return (
        case.ids,
        *tensors,
        o["num_hashes"],
        o["order"],
        keys,
        False,
        o["first_hash"],
        o["pool"],
    )


# ---- indices ----


@pytest.mark.parametrize(("ids", "num_codewords", "expected"), CHECK_VALUES, ids=str)
def test_check_values(
    ids: dict[int, int], num_codewords: int, expected: list[int], indices: Callable[..., Tensor]
) -> None:
    rows, order, at = check_arguments(ids)
    found = indices(rows, num_codewords, num_hashes=len(expected), order=order)
    assert found[1, at].tolist() == expected


@pytest.mark.parametrize("seed", range(6))
def test_indices_equal_the_reference(seed: int, indices: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, num_fields = [1, 7, 33][seed % 3], 3 + seed
    # Strided, and not even in order.
    ids = torch.randint(
        0, 2 ** [3, 63][seed % 2] - 1, (num_fields, 2 * batch), generator=generator
    ).t()[::2]
    options = {"num_hashes": 1 + seed % 3, "order": 2 + seed % 2, "first_hash": seed % 3}
    for num_codewords in (1, 1000, 2**31 + 3, 2**32 - 1):
        expected = reference.multi_hash_indices(ids, num_codewords, **options)
        assert torch.equal(indices(ids, num_codewords, **options), expected)


def test_crosses_of_any_fields(indices: Callable[..., Tensor]) -> None:
    """Every cross is the right one: pairs, triples, and pairs with any set of key fields."""
    source = random.Random(0)
    cases: list[tuple[int, int, list[int] | None]] = [(f, 2, None) for f in (2, 3, 4, 5, 17, 40)]
    cases += [(f, 3, None) for f in (3, 4, 5, 9, 16, 17)]
    for num_fields in (2, 3, 5, 9, 17):
        sizes = (1, max(1, num_fields // 2), num_fields)
        cases += [(num_fields, 2, source.sample(range(num_fields), size)) for size in sizes]
    for num_fields, order, key_fields in cases:
        ids = torch.randint(0, 2**40, (1, num_fields))
        options = {"num_hashes": 1, "order": order, "key_fields": key_fields}
        expected = reference.multi_hash_indices(ids, 2**32 - 1, **options)
        assert torch.equal(indices(ids, 2**32 - 1, **options), expected), (num_fields, key_fields)


def test_indices_of_nothing(indices: Callable[..., Tensor]) -> None:
    assert indices(torch.zeros(0, 4, dtype=torch.int64), 9, num_hashes=2).shape == (0, 6, 2)


# ---- lookup under the tolerance rule ----


def fuzz(seed: int, dtype: torch.dtype = torch.float32) -> Case:
    """Any combination of options; mostly one program."""
    source = random.Random(seed)
    order = source.choice((2, 2, 3))
    num_fields = source.randint(order, 4)
    key_fields = None
    if order == 2 and source.random() < 0.4:
        key_fields = source.sample(range(num_fields), source.randint(1, num_fields))
    pool = source.random() < 0.75
    return make(
        source.choice((1, 2, 5, 7)),
        num_fields,
        source.choice((1, 3, 50, 5000)),
        source.choice((1, 3, 8, 16, 16, 17)),
        num_hashes=source.randint(1, 2),
        order=order,
        private=source.random() < 0.4,
        pair_weights=source.choice(("none", "shared", "member") if pool else ("none", "shared")),
        codeword_weights=source.random() < 0.4,
        key_fields=key_fields,
        pool=pool,
        first_hash=source.randint(0, 3),
        vocabulary=source.choice((2, 9, 2**62)),
        dtype=dtype,
        seed=seed,
    )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(60 if gpu.HAS_GPU else 10))
def test_fuzz(seed: int, backend: str) -> None:
    check_tolerance(fuzz(seed), backend)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(60, 84 if gpu.HAS_GPU else 62))
@pytest.mark.parametrize("dtype", HALF)
def test_fuzz_low_precision(seed: int, dtype: torch.dtype, backend: str) -> None:
    check_tolerance(fuzz(seed, dtype), backend, sparse=False)


TYPICAL: dict[str, dict[str, Any]] = {
    "several programs": {"batch": 9, "num_fields": 5, "pair_weights": "shared"},
    "triples": {"batch": 3, "order": 3, "private": True, "pair_weights": "member"},
    "key fields": {"batch": 2, "num_fields": 9, "key_fields": [7, 2], "pair_weights": "shared"},
    "one pair": {"batch": 1, "num_fields": 2, "pair_weights": "member", "num_hashes": 1},
    "wide": {"batch": 1, "num_fields": 2, "width": 130, "codeword_weights": True},
}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("name", TYPICAL)
def test_typical_shapes(name: str, backend: str) -> None:
    check_tolerance(make(**TYPICAL[name]), backend, sparse=False)


@pytest.mark.skipif(not gpu.HAS_GPU, reason="interpreted too slowly")
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("width", [16, 48, 1024])
def test_large_batches(width: int, dtype: torch.dtype, backend: str) -> None:
    for num_codewords in (7, 1000, 200_000):
        case = make(
            300, 17, num_codewords, width, vocabulary=30, pair_weights="shared", dtype=dtype
        )
        check_tolerance(case, backend)


def test_mixed_dtypes(backend: str) -> None:
    case = make(2, 3, pair_weights="shared", codeword_weights=True)
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    leaves = zip(case.tensors.items(), dtypes, strict=True)
    tensors = {n: t.detach().to(dtype).requires_grad_() for (n, t), dtype in leaves}
    check_tolerance(Case(case.ids, tensors, case.options), backend)


@pytest.mark.parametrize("batch", [0])
@pytest.mark.parametrize("pool", [True, False])
def test_nothing_to_do(batch: int, pool: bool, backend: str) -> None:
    case = on_device(make(batch, 4, pair_weights="shared", codeword_weights=True, pool=pool))
    out = fused(case, backend)
    assert out.shape == (0, 4 if pool else 6, 32)
    found = case.gradients(out, torch.ones_like(out))
    assert all(g.shape == case.tensors[n].shape and not g.any() for n, g in found.items())
    assert not sparse_gradient(case, backend, torch.ones_like(out)).to_dense().any()


# ---- the codebook's gradient: hot rows, many levels ----


def codebook_gradient(case: Case, backend: str, upstream: Tensor) -> Tensor:
    """By the op itself, without a forward."""
    op = getattr(torch.ops.mtlfast, f"{op_name(backend)}_backward").default
    found, pair, codeword = op(upstream.to(gpu.DEVICE), *inputs_of(case), True, False, False)
    assert pair.numel() == codeword.numel() == 0
    return found


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("batch", "num_codewords", "vocabulary"),
    [(11, 1, 9), (180, 1, 1), (180, 2, 2), (100, 40, 9)],
)
def test_hot_rows(batch: int, num_codewords: int, vocabulary: int, backend: str) -> None:
    """Runs that end inside a chunk, at its end, in the next one, or ten chunks later."""
    sizes = {"width": 3, "vocabulary": vocabulary, "pair_weights": "shared"}
    case = make(batch, 3, num_codewords, **sizes)
    exact_case = case.to(torch.float64)
    exact, unfused = exact_case.call(reference.multi_hash_lookup), case.call(plain)
    upstream = upstream_of(unfused)
    truth = exact_case.gradients(exact, upstream.double())["codebook"]
    expected = case.gradients(unfused, upstream)["codebook"]
    own = on_device(case)
    found = codebook_gradient(own, backend, upstream)
    tolerance.check("codebook", found.cpu(), expected, truth, tolerance.BACKWARD)
    assert torch.equal(codebook_gradient(own, backend, upstream), found)
    assert torch.equal(sparse_gradient(own, backend, upstream).to_dense(), found)


def test_every_run_gives_the_same_bits(backend: str) -> None:
    case = on_device(make(9, 3, 5, vocabulary=3, pair_weights="shared", codeword_weights=True))
    runs = []
    for _ in range(2):
        out = fused(case, backend)
        runs.append([out, *case.gradients(out, upstream_of(out).to(gpu.DEVICE)).values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_more_than_2_31_elements(dtype: torch.dtype, backend: str) -> None:
    """Rows on both sides; only those in use are ever touched."""
    width, n = 16, 2**27 + 12_345
    codebook = torch.empty(1, n, width, dtype=dtype, device=gpu.DEVICE)
    assert codebook.numel() > 2**31
    ids = torch.randint(0, 2**40, (30, 3))
    found = reference.multi_hash_indices(ids, n, num_hashes=1)
    assert int(found.max()) * width > 2**31 - 10**8
    rows = found.unique()
    small = torch.randn(len(rows), width).to(dtype)
    codebook[0, rows.to(gpu.DEVICE)] = small.to(gpu.DEVICE)
    options = {"num_hashes": 1, "order": 2, "key_fields": None, "first_hash": 0, "pool": True}
    case = Case(ids.to(gpu.DEVICE), {"codebook": codebook}, options)
    out = fused(case, backend)

    small.requires_grad_()
    words = small.float()[torch.searchsorted(rows, found)].flatten(2)
    crosses = torch.tensor(crosses_of(3, 2, None))
    expected = torch.zeros(30, 3, width)
    for k in range(2):
        expected = expected.index_add(1, crosses[:, k], words)
    rounded = expected.detach().to(dtype).float()
    torch.testing.assert_close(out.cpu().float(), rounded, rtol=1e-2, atol=1e-4)
    upstream = torch.randn(30, 3, width)
    gradient = sparse_gradient(case, backend, upstream).cpu()
    (of_small,) = torch.autograd.grad(expected, small, upstream)
    assert torch.equal(gradient.indices()[1], rows)
    torch.testing.assert_close(gradient.values(), of_small, rtol=1e-2, atol=1e-3)


# ---- strides, NaN ----


def strided(t: Tensor, kind: str) -> Tensor:
    t = t.detach()
    if kind == "permuted":
        return t.movedim(-1, 0).contiguous().movedim(0, -1)
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 3), float("nan"), dtype=t.dtype)
    wide = wide.to(t.device)
    wide[..., : t.shape[-1]] = t
    return wide[..., : t.shape[-1]]


@pytest.mark.parametrize("kind", ["permuted", "rows apart"])
def test_strides_change_nothing(kind: str, backend: str) -> None:
    case = on_device(make(3, 3, 50, private=True, pair_weights="member", codeword_weights=True))
    tensors = {n: strided(t, kind).requires_grad_() for n, t in case.tensors.items()}
    other = Case(case.ids.t().contiguous().t(), tensors, case.options)
    out = fused(case, backend)
    same = fused(other, backend)
    gpu.assert_same_for_any_strides(same, out, backend, "out")
    upstream = upstream_of(out).to(gpu.DEVICE)
    expected = case.gradients(out, upstream)
    for name, found in other.gradients(same, strided(upstream, kind)).items():
        gpu.assert_same_for_any_strides(found, expected[name], backend, name)


def test_expanded_inputs(backend: str) -> None:
    case = on_device(make(3, 3, 50, private=True, pair_weights="shared", codeword_weights=True))
    for name, t in case.tensors.items():
        tensors = {**case.tensors, name: expanded(t, 0)}
        copies = {n: dense(t) for n, t in tensors.items()}
        other, same = (Case(case.ids, each, case.options) for each in (tensors, copies))
        out, expected = fused(other, backend), fused(same, backend)
        assert torch.equal(out, expected)
        upstream = upstream_of(out).to(gpu.DEVICE)
        truth = same.gradients(expected, upstream)
        for of, found in other.gradients(out, upstream).items():
            assert torch.equal(found, truth[of]), (name, of)


def test_expanded_upstream_gradients(backend: str) -> None:
    case = on_device(make(3, 3, 50, pair_weights="shared"))
    out = fused(case, backend)
    ones = torch.ones_like(out)
    expected = case.gradients(out, ones, retain_graph=True)
    for name, found in case.gradients(out, ones[:1, :1, :1].expand(out.shape)).items():
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("name", ["pair_weights", "codeword_weights", "upstream"])
def test_nan_stays_in_its_sample(name: str, backend: str) -> None:
    case = on_device(make(5, 3, 50, 3, vocabulary=5, pair_weights="shared", codeword_weights=True))
    clean_out = fused(case, backend)
    upstream = upstream_of(clean_out).to(gpu.DEVICE)
    clean = case.gradients(clean_out, upstream)
    with torch.no_grad():
        (upstream if name == "upstream" else case.tensors[name])[3, 2, ...] = float("nan")
    out = fused(case, backend)
    found = case.gradients(out, upstream)
    others = torch.arange(5, device=gpu.DEVICE) != 3
    assert torch.equal(out[others], clean_out[others])
    assert bool(out[3].isnan().any()) == (name != "upstream")
    for weights in ("pair_weights", "codeword_weights"):
        assert torch.equal(found[weights][others], clean[weights][others])
    used = reference.multi_hash_indices(case.ids.cpu(), 50, num_hashes=2)[3]
    untouched = ~torch.isin(torch.arange(50), used).to(gpu.DEVICE)
    gradient = found["codebook"][0]
    assert torch.equal(gradient[untouched], clean["codebook"][0][untouched])
    assert bool(gradient.isnan().any())


# ---- doors ----


def test_only_what_is_needed_is_computed(backend: str) -> None:
    case = on_device(make(1, 3, pair_weights="member", codeword_weights=True))
    out = fused(case, backend)
    upstream = upstream_of(out).to(gpu.DEVICE)
    everything = case.gradients(out, upstream, retain_graph=True)
    for name, tensor in case.tensors.items():
        (gradient,) = torch.autograd.grad(out, tensor, upstream, retain_graph=True)
        assert torch.equal(gradient, everything[name]), name


def test_sparse_gradient_through_autograd(backend: str) -> None:
    case = on_device(make(2, 3, pair_weights="shared"))
    out = fused(case, backend, sparse_grad=True)
    upstream = upstream_of(out).to(gpu.DEVICE)
    found = case.gradients(out, upstream)
    assert found["codebook"].is_coalesced()
    assert (found["codebook"].sparse_dim(), found["codebook"].dense_dim()) == (2, 1)
    dense = case.gradients(fused(case, backend), upstream)
    assert torch.equal(found["codebook"].to_dense(), dense["codebook"])
    assert torch.equal(found["pair_weights"], dense["pair_weights"])


def test_what_it_refuses(backend: str) -> None:
    case = make(2, 3)
    for changed, text in (
        (case.to(torch.float64), "float64 is computed by the reference only"),
        (make(2, 3, width=GPU_MAX_WIDTH[backend] + 1), "columns are wider than"),
    ):
        with pytest.raises(ValueError, match=f"found '{backend}': .*{text}"):
            fused(on_device(changed), backend)
    if not gpu.HAS_GPU:
        with pytest.raises(ValueError, match="hash 'siphash' runs on CPUs only"):
            fused(make(2, 3, hash="siphash"), backend)
        negative = Case(case.ids - 9, case.tensors, case.options)
        with pytest.raises(ValueError, match="ids: expected no negative id"):
            fused(negative, backend)
    step: Any = lambda: None  # noqa: E731
    with pytest.raises(ValueError, match="fused_step: expected None unless backend 'cpu' runs"):
        fused(on_device(case), backend, fused_step=step)


def test_explain(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTLFAST_BACKEND", raising=False)
    case = on_device(make(2, 3))

    def explain(**options: Any) -> Any:
        return case.call(
            lambda *args, **kw: mtlfast.explain("multi_hash_lookup", *args, **kw), **options
        )

    assert explain(backend=backend).backend == backend
    assert "device: " in explain(backend=backend).reason
    on_cpu = "cpu" if _extension.cpu_ops_available() else "reference"
    expected = "triton" if gpu.HAS_GPU else on_cpu
    assert explain().backend == expected
    found = mtlfast.explain(ops.multi_hash_indices, case.ids, 9, num_hashes=1)
    assert found.backend == expected


# ---- inside torch ----


def test_opcheck(backend: str) -> None:
    name = op_name(backend)
    case = on_device(make(2, 2, num_hashes=1, pair_weights="member", codeword_weights=True))
    forward = getattr(torch.ops.mtlfast, f"{name}_forward").default
    gpu.opcheck(forward, inputs_of(case, detached=False))
    out = forward(*inputs_of(case))
    spread = torch.ones(()).to(out).expand(out.shape)
    back = getattr(torch.ops.mtlfast, f"{name}_backward").default
    gpu.opcheck(back, (spread, *inputs_of(case), True, False, True))
    found = getattr(torch.ops.mtlfast, name.replace("lookup", "indices")).default
    gpu.opcheck(found, (case.ids, 9, 2, 2, None, False, 0))


def test_compiled_equals_eager(backend: str) -> None:
    def block(ids: Tensor, codebook: Tensor, **options: Any) -> Tensor:
        rows = ops.multi_hash_indices(ids, 9, num_hashes=1).float().sum()
        out = ops.multi_hash_lookup(ids, codebook * 2.0, **options, backend=backend)
        return out.mul(0.5) + rows

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 3):
        case = on_device(make(batch, 3, pair_weights="shared"))
        out, expected = case.call(compiled), case.call(block)
        assert torch.equal(out, expected)
        upstream = upstream_of(out).to(gpu.DEVICE)
        right = case.gradients(expected, upstream)
        for name, gradient in case.gradients(out, upstream).items():
            assert torch.equal(gradient, right[name]), name


def test_second_order_is_refused(backend: str) -> None:
    case = on_device(make(2, 3, pair_weights="shared"))
    out = fused(case, backend)
    (gradient,) = torch.autograd.grad(
        out.square().sum(), case.tensors["pair_weights"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="first-order gradients only"):
        gradient.sum().backward()


def test_autocast(backend: str) -> None:
    case = make(2, 3, pair_weights="shared")
    exact = case.to(torch.float64).call(reference.multi_hash_lookup)
    with torch.autocast(gpu.DEVICE, torch.bfloat16):
        out = fused(on_device(case), backend)
    with torch.autocast("cpu", torch.bfloat16):
        same = case.call(reference.multi_hash_lookup)
    assert out.dtype == same.dtype == torch.bfloat16
    tolerance.check("out", out.cpu(), same, exact, tolerance.FORWARD)


@pytest.mark.skipif(not _extension.cpu_ops_available(), reason="there is no C++ op")
@pytest.mark.parametrize("end", ["forward", "backward", "backward_sparse", "indices"])
def test_the_python_op_has_the_schema_of_the_cpp_op(end: str) -> None:
    names = ("multi_hash_lookup_triton_", "multi_hash_lookup_")
    if end == "indices":
        names, end = ("multi_hash_indices_triton", "multi_hash_indices"), ""
    found, expected = (
        str(getattr(torch.ops.mtlfast, name + end).default._schema) for name in names
    )
    assert found.replace("_triton", "") == expected


@pytest.mark.parametrize(
    ("restoring", "shrinking"),
    [
        *itertools.product(("linear", "attentive"), ("attentive", "softmax")),
        ("linear", "sum"),
        ("attentive", "none"),
    ],
)
def test_module(restoring: Any, shrinking: Any, backend: str) -> None:
    """Orders 2 and 3 together, every kind of restoring and shrinking."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hashes": 1, "orders": (2, 3), "init_std": 1.0}
    modules = [
        MultiHashCodebook(
            3, 40, 4, 2, restoring=restoring, shrinking=shrinking, backend=name, **sizes
        ).to(gpu.DEVICE)
        for name in (backend, "reference")
    ]
    modules[1].load_state_dict(modules[0].state_dict())
    ids = torch.randint(0, 9, (2, 3)).to(gpu.DEVICE)
    embeddings = torch.randn(2, 3, 2).to(gpu.DEVICE)
    found, expected = (module(ids, embeddings) for module in modules)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
