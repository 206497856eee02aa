"""The fused CPU op against the definition: accuracy, broadcasting, strides, bits, NaN.

Nothing here skips where the C++ op is missing: ``backend="cpu"`` then raises, and the tests fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import tolerance
import torch
from layer_norm_cases import HALF, NAMES, WIDTHS, Case, fuzz, make, plain
from leaves import expanded
from torch import Tensor

from mtlfast import _extension, ops, reference

B, T, M = 37, 4, 5


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512_bf16"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this CPU can run."""
    try:
        _extension.set_cpu_capability(request.param)
    except ValueError as reason:
        pytest.skip(str(reason))
    yield request.param
    _extension.set_cpu_capability("auto")


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors are filled with NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def fused(case: Case) -> Tensor:
    return case.call(ops.conditional_layer_norm, backend="cpu")


def upstream_of(out: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)


def check_tolerance(case: Case) -> None:
    exact_case = case.to(torch.float64)
    out, in_dtype = fused(case), case.call(plain)
    exact = exact_case.call(reference.conditional_layer_norm)
    assert out.dtype == in_dtype.dtype
    assert out.is_contiguous()
    tolerance.check("out", out, in_dtype, exact, tolerance.FORWARD)
    upstream = upstream_of(out)
    found, in_dtype_grads = case.gradients(out, upstream), case.gradients(in_dtype, upstream)
    for name, truth in exact_case.gradients(exact, upstream.double()).items():
        assert found[name].dtype == case.tensors[name].dtype, name
        tolerance.check(name, found[name], in_dtype_grads[name], truth, tolerance.BACKWARD)


# ---- accuracy ----


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(150))
def test_fuzzed_float32(seed: int) -> None:
    check_tolerance(fuzz(seed))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("dtype", "seed"), [*itertools.product(HALF, range(200, 230))])
def test_fuzzed_half(dtype: torch.dtype, seed: int) -> None:
    check_tolerance(fuzz(seed, dtype))


@pytest.mark.usefixtures("poisoned_memory", "isa")
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_fuzzed_on_every_instruction_set(dtype: torch.dtype) -> None:
    for seed in range(300, 315):
        check_tolerance(fuzz(seed, dtype))


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_width(d: int, dtype: torch.dtype) -> None:
    check_tolerance(make((33, d), (d,), residual=(33, d), dtype=dtype))


TYPICAL = {
    "tokens": make((B, T, M, 32), (T, M, 32)),
    "tokens shared by the tasks": make((B, 1, M, 32), (T, M, 32)),
    "item as residual": make((B, T, M, 32), (T, M, 32), residual=(B, 1, 1, 32)),
    "rows, one table": make((B * T, 32), (32,)),
    "rows, a table each": make((B * T, 32), (B * T, 32)),
    "rows shared by the tasks": make((B * T, 1, 32), (T, 32)),
    "task first": make((T, B * M, 32), (T, 1, 32), residual=(T, B * M, 32)),
    "task first, many tokens": make((2, 3001, 16), (2, 1, 16), residual=(2, 3001, 16)),
    "task first, one item": make((T, 1, 24), (T, 1, 24), residual=(T, B * M, 24)),
    "task first, one shift": make((T, B * M, 32), (T, 1, 32), (32,)),
    "sample as condition": make((B, 70, 32), (B, 1, 32), residual=(70, 32)),
    "sample as condition, many samples": make((301, 20, 16), (301, 1, 16), residual=(301, 1, 16)),
    "sample as condition, one shift": make((70, 49, 24), (70, 1, 24), (24,)),
    "scale and shift differ in shape": make((B, T, M, 32), (M, 32), (B, T, 1, 32)),
    "one row, many tables": make((32,), (B * T, 32)),
    "one vector": make((32,), (32,), residual=(32,)),
    "many samples": make((3001, 2, 16), (2, 16), (16,), residual=(3001, 1, 16)),
}


@pytest.mark.parametrize("name", TYPICAL)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_typical_shapes(name: str, dtype: torch.dtype) -> None:
    check_tolerance(TYPICAL[name].to(dtype))


def test_large_mean() -> None:
    """Where the mean is a thousand times the deviation, a careless variance is all rounding."""
    for seed, d in itertools.product(range(5), (16, 24, 64, 1000)):
        check_tolerance(make((40, d), (d,), seed=seed, offset=1000.0))


def test_constant_rows_have_no_deviation() -> None:
    for value in (0.0, 1.0, 0.1, 1e10, -3e30):
        x = torch.full((5, 24), value)
        out = ops.conditional_layer_norm(x, torch.ones(24), torch.full((24,), 2.0), backend="cpu")
        torch.testing.assert_close(out, torch.full((5, 24), 2.0), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 10.0])
def test_eps(eps: float) -> None:
    case = make((20, 24), (24,))
    case.eps = eps
    check_tolerance(case)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("d", [1, 40])
def test_every_half_number_is_read_and_written_exactly(dtype: torch.dtype, d: int) -> None:
    """With x = 0 the op returns its shift: all 65,536 of them, and float32 rounded to them."""
    x = torch.zeros(d)
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    shift = bits.view(dtype)[:, None].expand(-1, d)
    out = ops.conditional_layer_norm(x, torch.ones(d), shift, backend="cpu")
    torch.testing.assert_close(out, shift.float(), rtol=0, atol=0, equal_nan=True)

    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=generator)
    near_half = shift[:, 0].float() * (1 + 2.0**-11 * torch.tensor([[0.0], [1.0], [0.5], [2.0]]))
    values = torch.cat([bits.to(torch.int32).view(torch.float32), near_half.flatten()])
    values[values.abs() < 2.0**-126] = 0.0  # hardware may round these to zero
    with torch.autocast("cpu", dtype):
        out = ops.conditional_layer_norm(
            x, torch.ones(d), values[:, None].expand(-1, d), backend="cpu"
        )
    expected = values.to(dtype)[:, None].expand(-1, d)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


# ---- mixed dtypes ----


@pytest.mark.parametrize(
    "dtypes", [*itertools.product([torch.float32, *HALF], repeat=len(NAMES))], ids=str
)
def test_mixed_dtypes_promote_as_torch_does(dtypes: tuple[torch.dtype, ...]) -> None:
    case = make((9, 3, 24), (3, 24), residual=(9, 1, 24))
    tensors = dict(zip(NAMES, case.tensors.values(), strict=False)) | {
        "residual": case.tensors["residual"]
    }
    case = Case(
        {
            name: tensors[name].detach().to(dtype).requires_grad_()
            for name, dtype in zip(NAMES, dtypes, strict=True)
        }
    )
    check_tolerance(case)


def test_float64_runs_on_the_reference() -> None:
    case = make((5, 24), (24,)).to(torch.float64)
    assert case.call(ops.conditional_layer_norm).dtype == torch.float64
    case.tensors["x"] = case.tensors["x"].float()
    assert case.call(ops.conditional_layer_norm).dtype == torch.float64
    with pytest.raises(ValueError, match=r"backend: expected .* found 'cpu': float64"):
        fused(case)


# ---- strides ----


def strided(t: Tensor, kind: str) -> Tensor:
    """A tensor equal to ``t`` with other strides."""
    t = t.detach()
    if kind == "last dimension not contiguous":
        return t.movedim(-1, 0).contiguous().movedim(0, -1)
    if kind == "every second column":
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"), dtype=t.dtype)
        wide[..., ::2] = t
        return wide[..., ::2]
    if kind == "rows apart":
        wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype)
        wide[..., 1:-2] = t
        return wide[..., 1:-2]
    assert kind == "leading dimensions permuted"
    order = [*reversed(range(t.dim() - 1)), t.dim() - 1]
    return t.permute(order).contiguous().permute(order)


@pytest.mark.parametrize(
    "kind",
    [
        "last dimension not contiguous",
        "every second column",
        "rows apart",
        "leading dimensions permuted",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_change_nothing(kind: str, dtype: torch.dtype) -> None:
    case = make((70, T, M, 24), (T, M, 24), residual=(70, 1, 1, 24), dtype=dtype)
    other = Case({n: strided(t, kind).requires_grad_() for n, t in case.tensors.items()})
    out = fused(case)
    assert torch.equal(fused(other), out)
    upstream = upstream_of(out)
    expected = case.gradients(out, upstream)
    for gradient in (upstream, strided(upstream, kind)):
        for name, found in other.gradients(fused(other), gradient).items():
            assert torch.equal(found, expected[name]), name


def test_expanded_inputs() -> None:
    case = make((B, 1, M, 24), (1, M, 24), (24,))
    expanded = {
        "x": case.tensors["x"].expand(B, T, M, 24),
        "scale": case.tensors["scale"].expand(T, M, 24),
        "shift": case.tensors["shift"].expand(B, 1, 1, 24),
    }
    found = ops.conditional_layer_norm(**expanded, backend="cpu")
    assert torch.equal(found, fused(case).expand(B, T, M, 24))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("tables", [(1, 20, 16), (40, 1, 16), (40, 20, 16)])
@pytest.mark.parametrize("names", [("scale",), ("shift",), ("scale", "shift")])
def test_gradients_of_expanded_tables(
    names: tuple[str, ...], tables: tuple[int, ...], dim: int
) -> None:
    """One row in memory, a row of the gradient for each of its uses."""
    for others in (tables, (40, 1, 16)):
        case = make((40, 20, 16), *((tables if n in names else others) for n in NAMES[1:3]))
        for name in names:
            case.tensors[name] = expanded(case.tensors[name], dim)
        check_tolerance(case)


@pytest.mark.parametrize("keep", [(), (-1,), (0,), (0, 2), (1, 2, -1)])
def test_expanded_upstream_gradients(keep: tuple[int, ...]) -> None:
    """``out.sum().backward()`` and the like: gradients with zero strides."""
    case = make((B, T, M, 24), (T, M, 24), residual=(B, 1, 1, 24))
    out = fused(case)
    dims = range(out.dim())
    kept = {k % out.dim() for k in keep}
    small = upstream_of(out)[tuple(slice(None if d in kept else 1) for d in dims)]
    expected = case.gradients(fused(case), small.expand(out.shape).contiguous())
    for name, gradient in case.gradients(out, small.expand(out.shape)).items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["sample first", "shared by the tasks", "task first"])
def test_tensors_larger_than_the_caches(dtype: torch.dtype, layout: str) -> None:
    """They are read and written in other ways (prefetched, streamed), with the same bits."""
    batch, d = 80_000 // T, 128
    shape, table, axis = {
        "sample first": ((batch, T, d), (T, d), 0),
        "shared by the tasks": ((batch, 1, d), (T, d), 0),
        "task first": ((T, batch, d), (T, 1, d), 1),
    }[layout]
    case = make(shape, table, residual=shape, dtype=dtype)
    out = fused(case)
    upstream = upstream_of(out)
    gradients = case.gradients(out, upstream)
    for start, rows in ((0, 100), (batch - 77, 77)):
        part = Case(
            {
                n: t.detach().narrow(axis, start, rows) if n in ("x", "residual") else t.detach()
                for n, t in case.tensors.items()
            }
        )
        for tensor in part.tensors.values():
            tensor.requires_grad_()
        found = fused(part)
        assert torch.equal(found, out.narrow(axis, start, rows))
        upstream_part = upstream.narrow(axis, start, rows)
        for name, gradient in part.gradients(found, upstream_part).items():
            if name in ("x", "residual"):
                assert torch.equal(gradient, gradients[name].narrow(axis, start, rows)), name
    assert bool(torch.isfinite(out).all())


def test_addresses_have_64_bits() -> None:
    """Two rows more than 2**31 elements apart; the memory in between is never touched."""
    far = torch.empty((1 << 31) + 64, dtype=torch.bfloat16)
    x = far.as_strided((2, 32), ((1 << 31) + 32, 1))
    x.copy_(torch.randn(2, 32))
    table = torch.ones(32)
    out = ops.conditional_layer_norm(x, table, table, backend="cpu")
    assert torch.equal(out, ops.conditional_layer_norm(x.clone(), table, table, backend="cpu"))


# ---- empty inputs ----


@pytest.mark.parametrize(
    ("x", "scale", "residual"),
    [
        ((0, 24), (24,), None),
        ((0, T, M, 24), (T, M, 24), (0, 1, 1, 24)),
        ((3, 1, 24), (0, 24), (1, 24)),
        ((24,), (0, 24), None),
    ],
)
def test_nothing_to_do(
    x: tuple[int, ...], scale: tuple[int, ...], residual: tuple[int, ...] | None
) -> None:
    case = make(x, scale, residual=residual)
    out = fused(case)
    assert out.shape == case.call(plain).shape
    for name, gradient in case.gradients(out, torch.ones_like(out)).items():
        assert torch.equal(gradient, torch.zeros_like(case.tensors[name])), name


# ---- gradients ----


@pytest.mark.parametrize("wanted", [c for n in (1, 2, 3) for c in itertools.combinations(NAMES, n)])
@pytest.mark.parametrize("residual", [(B, T, 24), (B, 1, 24)])
def test_only_the_gradients_that_are_wanted(
    wanted: tuple[str, ...], residual: tuple[int, ...]
) -> None:
    case = make((B, T, 24), (T, 24), residual=residual)
    upstream = upstream_of(fused(case))
    expected = case.gradients(fused(case), upstream)
    for name, tensor in case.tensors.items():
        tensor.requires_grad_(name in wanted)
    fused(case).backward(upstream)
    for name, tensor in case.tensors.items():
        assert (tensor.grad is not None) == (name in wanted), name
        assert tensor.grad is None or torch.equal(tensor.grad, expected[name]), name


def test_gradients_of_x_and_residual_do_not_share_memory() -> None:
    case = make((B, 24), (24,), residual=(B, 24))
    fused(case).sum().backward()
    x, residual = case.tensors["x"].grad, case.tensors["residual"].grad
    assert x is not None
    assert residual is not None
    assert torch.equal(x, residual)
    x.zero_()
    assert residual.abs().sum() > 0


def test_one_tensor_as_several_arguments() -> None:
    x = torch.randn(7, 24, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    ops.conditional_layer_norm(x, x, x, residual=x, backend="cpu").square().sum().backward()
    reference.conditional_layer_norm(exact, exact, exact, residual=exact).square().sum().backward()
    torch.testing.assert_close(x.grad, exact.grad, check_dtype=False, rtol=1e-4, atol=1e-4)


# ---- bits ----


@pytest.mark.parametrize("shape", [(300, 1000), (70, 2, 4096)])
def test_few_wide_rows_are_shared_out(shape: tuple[int, ...]) -> None:
    case = make(shape, shape[1:], residual=shape)
    check_tolerance(case)
    check_threads(case)


@pytest.mark.parametrize("name", TYPICAL)
def test_same_bits_for_any_number_of_threads_and_every_run(name: str) -> None:
    # Large enough that several threads do take part.
    case = TYPICAL[name]
    grow = {"many samples": 1, "one vector": 1}.get(name, 40)
    tensors = {
        n: torch.cat([t.detach()] * grow) if t.dim() > 1 and len(t) in (B, B * T) else t.detach()
        for n, t in case.tensors.items()
    }
    check_threads(Case({n: t.requires_grad_() for n, t in tensors.items()}))


def check_threads(case: Case) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8, 1):
            torch.set_num_threads(threads)
            out = fused(case)
            results.append({"out": out, **case.gradients(out, upstream_of(out))})
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for tensor, found in result.items():
            assert torch.equal(found, results[0][tensor]), tensor


# ---- NaN ----


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("d", [17, 32])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_nan_stays_in_its_row(poison: float, d: int, dtype: torch.dtype) -> None:
    case = make((B, T, d), (T, d), residual=(B, 1, d), dtype=dtype)
    healthy = fused(case)
    upstream = upstream_of(healthy)
    expected = case.gradients(healthy, upstream)
    for name, victim in (("x", (11, 2)), ("residual", (11, 0))):
        case = make((B, T, d), (T, d), residual=(B, 1, d), dtype=dtype)
        with torch.no_grad():
            case.tensors[name][(*victim, d // 2)] = poison
        out = fused(case)
        sick = torch.zeros(B, T, dtype=torch.bool)
        sick[11, 2 if name == "x" else slice(None)] = True
        assert bool(out[sick].isnan().all())
        assert torch.equal(out[~sick], healthy[~sick])
        found = case.gradients(out, upstream)
        assert bool(found["x"][sick].isnan().all())
        assert torch.equal(found["x"][~sick], expected["x"][~sick])
        others = torch.arange(B) != 11
        assert bool(found["residual"][11].isnan().all())
        assert torch.equal(found["residual"][others], expected["residual"][others])
        # What is summed over the batch cannot help it; what is not must be untouched.
        tasks = ~sick.any(0)
        assert bool(found["scale"][~tasks].isnan().all())
        assert torch.equal(found["scale"][tasks], expected["scale"][tasks])
        assert torch.equal(found["shift"], expected["shift"])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("d", [17, 32])
@pytest.mark.parametrize("tables", [T, 100], ids=["a table per task", "a table per sample"])
def test_nan_stays_in_its_row_and_table(d: int, tables: int) -> None:
    rows, shape = (tables, B), (tables, B, d)
    case = make(shape, (tables, 1, d), residual=shape)
    healthy = fused(case)
    upstream = upstream_of(healthy)
    expected = case.gradients(healthy, upstream)
    with torch.no_grad():
        case.tensors["x"][2, 11, d // 2] = float("nan")
    out = fused(case)
    sick = torch.zeros(rows, dtype=torch.bool)
    sick[2, 11] = True
    assert bool(out[sick].isnan().all())
    assert torch.equal(out[~sick], healthy[~sick])
    found = case.gradients(out, upstream)
    assert bool(found["x"][sick].isnan().all())
    assert torch.equal(found["x"][~sick], expected["x"][~sick])
    others = torch.arange(tables) != 2
    assert bool(found["scale"][2].isnan().all())
    assert torch.equal(found["scale"][others], expected["scale"][others])
    assert torch.equal(found["shift"], expected["shift"])


def test_nan_in_scale_shift_and_upstream() -> None:
    for name in ("scale", "shift", "upstream"):
        case = make((B, T, 24), (T, 24))
        upstream = upstream_of(case.call(plain))
        with torch.no_grad():
            (upstream[:, 1] if name == "upstream" else case.tensors[name][1])[..., 3] = float("nan")
        out = fused(case)
        found = case.gradients(out, upstream)
        healthy = [0, 2, 3]
        assert bool(torch.isfinite(out[:, healthy]).all())
        assert bool(torch.isfinite(found["x"][:, healthy]).all())
        assert bool(torch.isfinite(found["scale"][healthy]).all())
        if name == "scale":
            assert bool(out[:, 1, 3].isnan().all())
            assert bool(found["x"][:, 1].isnan().all())
        if name == "shift":
            assert bool(out[:, 1, 3].isnan().all())
            assert bool(torch.isfinite(found["x"]).all())
        if name == "upstream":
            assert bool(found["x"][:, 1].isnan().all())
            assert bool(found["scale"][1, 3].isnan())
            assert bool(found["shift"][1, 3].isnan())
