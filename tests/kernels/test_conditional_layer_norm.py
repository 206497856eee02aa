"""The GPU kernels against the definition: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import gpu
import layer_norm_cases
import pytest
import tolerance
import torch
from gpu import poisoned_memory  # noqa: F401 (a fixture)
from layer_norm_cases import HALF, Case, fuzz, plain
from torch import Tensor

import mtlfast
from mtlfast import _extension, ops, reference
from mtlfast.ops.conditional_layer_norm import DTYPES, GPU_MAX_D

pytestmark = pytest.mark.skipif(not gpu.BACKENDS, reason="triton is not installed")
B, T, M = 11, 3, 2


@pytest.fixture(params=gpu.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def on_device(case: Case) -> Case:
    tensors = {n: t.detach().to(gpu.DEVICE).requires_grad_() for n, t in case.tensors.items()}
    return Case(tensors, case.eps)


def make(*args: Any, **options: Any) -> Case:
    return on_device(layer_norm_cases.make(*args, **options))


def fused(case: Case, backend: str) -> Tensor:
    return case.call(ops.conditional_layer_norm, backend=backend)


def upstream_of(out: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return drawn.to(out.device, out.dtype)


def check_tolerance(case: Case, backend: str) -> None:
    exact_case = case.to(torch.float64)
    out, in_dtype = fused(case, backend), case.call(plain)
    exact = exact_case.call(reference.conditional_layer_norm)
    assert out.dtype == in_dtype.dtype
    assert out.is_contiguous()
    tolerance.check("out", out, in_dtype, exact, tolerance.FORWARD)
    upstream = upstream_of(out)
    found, in_dtype_grads = case.gradients(out, upstream), case.gradients(in_dtype, upstream)
    for name, truth in exact_case.gradients(exact, upstream.double()).items():
        assert found[name].dtype == case.tensors[name].dtype, name
        tolerance.check(name, found[name], in_dtype_grads[name], truth, tolerance.BACKWARD)


SMALL = [seed for seed in range(80) if sum(t.numel() for t in fuzz(seed).tensors.values()) < 6_000]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("seed", range(80) if gpu.HAS_GPU else SMALL)
def test_fuzzed_float32(seed: int, backend: str) -> None:
    check_tolerance(on_device(fuzz(seed)), backend)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("dtype", "seed"), [*itertools.product(HALF, SMALL[:6])])
def test_fuzzed_half(dtype: torch.dtype, seed: int, backend: str) -> None:
    check_tolerance(on_device(fuzz(seed, dtype)), backend)


TYPICAL: dict[str, dict[str, tuple[int, ...]]] = {
    "tokens": {"x": (B, T, M, 32), "scale": (T, M, 32)},
    "tokens shared by the tasks": {"x": (B, 1, M, 32), "scale": (T, M, 32)},
    "item as residual": {"x": (B, T, M, 32), "scale": (T, M, 32), "residual": (B, 1, 1, 32)},
    "rows, one table": {"x": (150, 32), "scale": (32,)},
    "rows, a table each": {"x": (50, 32), "scale": (50, 32)},
    "task first": {"x": (T, 60, 32), "scale": (T, 1, 32), "residual": (T, 60, 32)},
    "scale and shift differ": {"x": (B, T, M, 32), "scale": (M, 32), "shift": (B, T, 1, 32)},
    "one row, many tables": {"x": (32,), "scale": (B * T, 32)},
    "widest": {"x": (3, 4096), "scale": (4096,), "residual": (3, 4096)},
    "many samples": {"x": (300, 2, 16), "scale": (2, 16), "shift": (16,), "residual": (300, 1, 16)},
    "more loops than a kernel has": {
        "x": (2, 1, 3, 1, 2, 5),
        "scale": (2, 2, 1, 3, 1, 5),
        "shift": (1, 2, 3, 1, 2, 5),
        "residual": (2, 1, 1, 1, 2, 5),
    },
}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("name", TYPICAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_typical_shapes(name: str, dtype: torch.dtype, backend: str) -> None:
    if TYPICAL[name]["x"][-1] > GPU_MAX_D[backend]:
        pytest.skip("too wide for this backend")
    check_tolerance(make(**TYPICAL[name], dtype=dtype), backend)


def test_large_mean(backend: str) -> None:
    for seed, d in itertools.product(range(2), (16, 24)):
        check_tolerance(make((20, d), (d,), seed=seed, offset=1000.0), backend)


def test_mixed_dtypes_promote_as_torch_does(backend: str) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
    case = make((9, 3, 24), (3, 24), residual=(9, 1, 24))
    tensors = dict(zip(case.tensors, dtypes, strict=True))
    case = Case({n: case.tensors[n].detach().to(t).requires_grad_() for n, t in tensors.items()})
    check_tolerance(case, backend)


def test_float64_runs_on_the_reference(backend: str) -> None:
    case = make((5, 24), (24,)).to(torch.float64)
    assert case.call(ops.conditional_layer_norm).dtype == torch.float64
    with pytest.raises(ValueError, match=f"found '{backend}': float64"):
        fused(case, backend)


def test_rows_wider_than_a_block_run_on_the_reference(backend: str) -> None:
    width = GPU_MAX_D[backend] + 1
    case = make((2, width), (width,))
    assert case.call(ops.conditional_layer_norm).shape == (2, width)
    with pytest.raises(ValueError, match=f"d = {width} is above {width - 1}"):
        fused(case, backend)


# ---- strides ----


def test_strides_change_nothing(backend: str) -> None:
    case = make((20, T, M, 24), (T, M, 24), residual=(20, 1, 1, 24))
    out = fused(case, backend)
    upstream = upstream_of(out)
    expected = case.gradients(out, upstream)

    def turned(t: Tensor) -> Tensor:
        return t.detach().movedim(-1, 0).contiguous().movedim(0, -1)

    def apart(t: Tensor) -> Tensor:
        wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), device=t.device)
        wide[..., 1:-2] = t.detach()
        return wide[..., 1:-2]

    for change in (turned, apart):
        other = Case({n: change(t).requires_grad_() for n, t in case.tensors.items()})
        again = fused(other, backend)
        gpu.assert_same_for_any_strides(again, out, backend, "out")
        for name, gradient in other.gradients(again, change(upstream)).items():
            gpu.assert_same_for_any_strides(gradient, expected[name], backend, name)


@pytest.mark.parametrize("keep", [(), (3,), (0,), (0, 2)])
def test_expanded_upstream_gradients(keep: tuple[int, ...], backend: str) -> None:
    """``out.sum().backward()`` and the like: gradients with zero strides."""
    case = make((B, T, M, 24), (T, M, 24), residual=(B, 1, 1, 24))
    out = fused(case, backend)
    small = upstream_of(out)[tuple(slice(None if d in keep else 1) for d in range(4))]
    expected = case.gradients(fused(case, backend), small.expand(out.shape).contiguous())
    for name, gradient in case.gradients(out, small.expand(out.shape)).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_addresses_have_64_bits(backend: str) -> None:
    """Two rows more than 2**31 elements apart; the memory in between is never touched."""
    far = torch.empty((1 << 31) + 64, dtype=torch.bfloat16, device=gpu.DEVICE)
    x = far.as_strided((2, 32), ((1 << 31) + 32, 1))
    x.copy_(torch.randn(2, 32))
    table = torch.ones(32, device=gpu.DEVICE)
    out = ops.conditional_layer_norm(x, table, table, backend=backend)
    assert torch.equal(out, ops.conditional_layer_norm(x.clone(), table, table, backend=backend))


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": (0, 24), "scale": (24,)},
        {"x": (0, T, M, 24), "scale": (T, M, 24), "residual": (0, 1, 1, 24)},
        {"x": (3, 1, 24), "scale": (0, 24), "residual": (1, 24)},
    ],
    ids=str,
)
def test_nothing_to_do(shapes: dict[str, Any], backend: str) -> None:
    case = make(**shapes)
    out = fused(case, backend)
    assert out.shape == case.call(plain).shape
    for name, gradient in case.gradients(out, torch.ones_like(out)).items():
        assert torch.equal(gradient, torch.zeros_like(case.tensors[name])), name


# ---- gradients ----


@pytest.mark.parametrize(
    "wanted", [("x",), ("residual",), ("scale",), ("shift",), ("x", "shift"), ("scale", "residual")]
)
def test_only_the_gradients_that_are_wanted(wanted: tuple[str, ...], backend: str) -> None:
    case = make((B, T, 24), (T, 24), residual=(B, 1, 24))
    upstream = upstream_of(fused(case, backend))
    expected = case.gradients(fused(case, backend), upstream)
    for name, tensor in case.tensors.items():
        tensor.requires_grad_(name in wanted)
    fused(case, backend).backward(upstream)
    for name, tensor in case.tensors.items():
        assert (tensor.grad is not None) == (name in wanted), name
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-5, atol=1e-5)


def test_gradients_of_x_and_residual_do_not_share_memory(backend: str) -> None:
    case = make((B, 24), (24,), residual=(B, 24))
    fused(case, backend).sum().backward()
    x, residual = case.tensors["x"].grad, case.tensors["residual"].grad
    assert x is not None
    assert residual is not None
    assert torch.equal(x, residual)
    x.zero_()
    assert residual.abs().sum() > 0


def test_every_run_gives_the_same_bits(backend: str) -> None:
    case = make((90, T, 32), (T, 32), residual=(90, 1, 32))
    runs = []
    for _ in range(2):
        out = fused(case, backend)
        runs.append([out, *case.gradients(out, upstream_of(out)).values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("d", [17, 32])
def test_nan_stays_in_its_row(d: int, backend: str) -> None:
    healthy = make((B, T, d), (T, d))
    case = make((B, T, d), (T, d))
    with torch.no_grad():
        case.tensors["x"][7, 2, d // 2] = float("nan")
    out, expected = fused(case, backend), fused(healthy, backend)
    sick = torch.zeros(B, T, dtype=torch.bool, device=gpu.DEVICE)
    sick[7, 2] = True
    assert bool(out[sick].isnan().all())
    assert torch.equal(out[~sick], expected[~sick])
    upstream = upstream_of(out)
    found, right = case.gradients(out, upstream), healthy.gradients(expected, upstream)
    assert bool(found["x"][sick].isnan().all())
    assert torch.equal(found["x"][~sick], right["x"][~sick])
    assert torch.equal(found["scale"][:2], right["scale"][:2])
    assert bool(found["scale"][2].isnan().all())
    assert torch.equal(found["shift"], right["shift"])


# ---- inside torch ----


def test_compiled_equals_eager(backend: str) -> None:
    def block(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor, eps: float) -> Tensor:
        out = ops.conditional_layer_norm(
            x * 2.0, scale, shift, residual=residual, eps=eps, backend=backend
        )
        return out.mul(0.5)

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (6, 7):
        case = make((batch, T, 24), (T, 24), residual=(batch, 1, 24))
        out, expected = case.call(compiled), case.call(block)
        assert torch.equal(out, expected)
        upstream = upstream_of(out)
        right = case.gradients(expected, upstream)
        for name, gradient in case.gradients(out, upstream).items():
            assert torch.equal(gradient, right[name]), name


def test_opcheck(backend: str) -> None:
    name = "conditional_layer_norm" + ("_triton" if backend == "triton" else "")
    run = getattr(torch.ops.mtlfast, f"{name}_forward").default
    back = getattr(torch.ops.mtlfast, f"{name}_backward").default
    t = make((6, 4, 24), (4, 24), residual=(6, 1, 24)).tensors
    arguments = (t["x"], t["scale"], t["shift"], t["residual"], 1e-5, 0)
    gpu.opcheck(run, (*arguments, True))
    inputs = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    out, mean, rstd = run(*inputs, True)
    given = (torch.ones(()).to(out).expand(out.shape), *inputs[:4], mean, rstd)
    gpu.opcheck(back, (*given, True, True, True, True))


def test_double_backward_says_what_to_do(backend: str) -> None:
    case = make((6, 24), (24,))
    out = fused(case, backend)
    (gradient,) = torch.autograd.grad(out.square().sum(), case.tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"conditional_layer_norm.*backend='reference'"):
        gradient.sum().backward()


def test_autocast(backend: str) -> None:
    case = make((10, T, 24), (T, 24))
    with torch.autocast(gpu.DEVICE, torch.bfloat16):
        out, same = fused(case, backend), case.call(reference.conditional_layer_norm)
    assert out.dtype == same.dtype == torch.bfloat16
    exact = case.to(torch.float64).call(reference.conditional_layer_norm)
    tolerance.check("out", out, same, exact, tolerance.FORWARD)


def test_explain(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTLFAST_BACKEND", raising=False)
    case = make((6, 24), (24,))
    found = mtlfast.explain(ops.conditional_layer_norm, **case.tensors, backend=backend)
    assert found.backend == backend
    assert "device: " in found.reason
    automatic = mtlfast.explain(ops.conditional_layer_norm, **case.tensors)
    on_cpu = "cpu" if _extension.cpu_ops_available() else "reference"
    assert automatic.backend == ("triton" if gpu.HAS_GPU else on_cpu)


@pytest.mark.skipif(not _extension.cpu_ops_available(), reason="there is no C++ op")
def test_the_python_op_has_the_schema_of_the_cpp_op() -> None:
    for way in ("forward", "backward"):
        found, expected = (
            str(getattr(torch.ops.mtlfast, f"conditional_layer_norm{kind}_{way}").default._schema)
            for kind in ("_triton", "")
        )
        assert found.replace("_triton", "") == expected


def test_widest_row_and_dtypes_are_the_kernel_s() -> None:
    pytest.importorskip("triton")
    kernel = importlib.import_module("mtlfast.kernels.conditional_layer_norm")
    assert GPU_MAX_D["triton"] == kernel.MAX_D
    assert kernel.DTYPES == DTYPES


@pytest.mark.parametrize(
    "shapes",
    [((),), ((), (3,)), ((2, 1), (3,), (1, 1, 1)), ((0, 4), (1, 1, 4)), ((1,), (0,)), ((2,), (3,))],
    ids=str,
)
def test_shapes_broadcast_as_torch_says(shapes: tuple[tuple[int, ...], ...]) -> None:
    from mtlfast.kernels import _loops

    try:
        expected = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        with pytest.raises(ValueError, match="expected shapes that broadcast"):
            _loops.broadcast(*shapes)
    else:
        assert _loops.broadcast(*shapes) == expected
