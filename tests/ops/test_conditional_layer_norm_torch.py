"""The fused CPU op inside torch: opcheck, compiled and exported graphs, autocast, transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tolerance
import torch
from layer_norm_cases import HALF, Case, make, plain
from torch import Tensor

import mtlfast
from mtlfast import ops, reference
from mtlfast.ops.conditional_layer_norm import DTYPES


def fused(*args: Tensor, **options: Any) -> Tensor:
    return ops.conditional_layer_norm(*args, backend="cpu", **options)


# ---- registration ----

SHAPES: list[dict[str, Any]] = [
    {"x": (6, 4, 5, 24), "scale": (4, 5, 24), "residual": (6, 1, 1, 24)},
    {"x": (6, 1, 5, 24), "scale": (4, 5, 24), "residual": (6, 1, 5, 24)},
    {"x": (30, 24), "scale": (24,), "shift": (30, 24)},
    {"x": (0, 3, 24), "scale": (3, 24), "residual": (24,)},
    {"x": (24,), "scale": (24,)},
]


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    t = case.tensors
    return t["x"], t["scale"], t["shift"], t.get("residual"), 1e-5, DTYPES.index(dtype), True


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck_forward(shapes: dict[str, Any], permuted: bool) -> None:
    case = make(**shapes)
    if permuted:
        for name, tensor in case.tensors.items():
            leaf = tensor.detach().movedim(-1, 0).contiguous().movedim(0, -1)
            case.tensors[name] = leaf.requires_grad_()
    torch.library.opcheck(torch.ops.mtlfast.conditional_layer_norm_forward, arguments(case))


def test_opcheck_forward_in_mixed_dtypes() -> None:
    case = make((6, 4, 24), (4, 24), residual=(6, 1, 24), dtype=torch.bfloat16)
    case.tensors["scale"] = case.tensors["scale"].detach().float().requires_grad_()
    for dtype in (torch.float32, *HALF):
        torch.library.opcheck(
            torch.ops.mtlfast.conditional_layer_norm_forward, arguments(case, dtype)
        )
    x, scale, shift, residual, eps, kind, _ = arguments(case)
    with torch.no_grad():
        detached = [t.detach() for t in (x, scale, shift, residual)]
        torch.library.opcheck(
            torch.ops.mtlfast.conditional_layer_norm_forward, (*detached, eps, kind, False)
        )


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize(
    "needed", [(True,) * 4, (True, False, False, True), (False, True, True, False)]
)
def test_opcheck_backward(shapes: dict[str, Any], needed: tuple[bool, ...]) -> None:
    case = make(**shapes)
    x, scale, shift, residual, eps, kind, _ = (
        t.detach() if isinstance(t, Tensor) else t for t in arguments(case)
    )
    op = torch.ops.mtlfast.conditional_layer_norm_forward
    out, mean, rstd = op(x, scale, shift, residual, eps, kind, True)
    for grad in (torch.randn_like(out), torch.ones(()).expand(out.shape)):
        torch.library.opcheck(
            torch.ops.mtlfast.conditional_layer_norm_backward,
            (grad, x, scale, shift, residual, mean, rstd, *needed),
        )


def test_the_op_itself_refuses_what_does_not_fit() -> None:
    """Callers from C++ and exported graphs do not pass the Python checks."""
    x, table = torch.randn(6, 24), torch.randn(24)
    op = torch.ops.mtlfast.conditional_layer_norm_forward
    for bad in (
        torch.randn(5, 24),
        torch.randn(23),
        torch.tensor(1.0),
        table.double(),
        table.int(),
    ):
        for args in ((bad, table, table, None), (x, bad, table, None), (x, table, table, bad)):
            if args[0] is bad and bad.shape == (5, 24):
                continue
            with pytest.raises(RuntimeError, match="mtlfast: "):
                op(*args, 1e-5, 0, True)
    for kind in (-1, len(DTYPES)):
        with pytest.raises(RuntimeError, match=f"mtlfast: out_kind: .*found {kind}"):
            op(x, table, table, None, 1e-5, kind, True)
    out, mean, rstd = op(x, table, table, None, 1e-5, 0, True)
    backward = torch.ops.mtlfast.conditional_layer_norm_backward
    good = (out, x, table, table, None, mean, rstd)
    for position, bad in ((0, out[:5]), (0, out.double()), (5, mean[:5]), (6, rstd.double())):
        changed = [bad if i == position else argument for i, argument in enumerate(good)]
        with pytest.raises(RuntimeError, match="mtlfast: "):
            backward(*changed, True, True, True, True)


# ---- compiled and exported graphs ----


def both_gradients(
    function: Callable[..., Tensor], other: Callable[..., Tensor], case: Case
) -> None:
    """Same output and gradients, bit for bit."""
    out, expected = case.call(function), case.call(other)
    assert torch.equal(out, expected)
    upstream = torch.randn_like(out)
    gradients = case.gradients(expected, upstream)
    for name, gradient in case.gradients(out, upstream).items():
        assert torch.equal(gradient, gradients[name]), name


def block(x: Tensor, scale: Tensor, shift: Tensor, **options: Any) -> Tensor:
    """The op between others, as models have it."""
    return fused(x * 2.0, scale, shift, **options).mul(0.5)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_equals_eager(compiler: str) -> None:
    compiled = torch.compile(block, backend=compiler, fullgraph=True, dynamic=False)
    both_gradients(compiled, block, make((6, 4, 5, 24), (4, 5, 24), residual=(6, 4, 5, 24)))


def test_compiled_with_dynamic_shapes_is_compiled_once() -> None:
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    compilations = torch._dynamo.utils.counters["stats"]
    seen = []
    for batch, tasks in ((6, 4), (7, 3), (11, 5)):
        for residual in (None, (batch, 1, 24)):
            case = make((batch, tasks, 24), (tasks, 24), residual=residual, seed=batch)
            both_gradients(compiled, block, case)
        seen.append(compilations["unique_graphs"])
    assert seen[0] > 0
    assert seen[1:] == seen[:1] * 2


def test_compiled_without_gradients() -> None:
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    case = make((6, 4, 24), (4, 24))
    with torch.no_grad():
        assert torch.equal(case.call(compiled), case.call(block))


def test_compiled_under_autocast() -> None:
    def function(x: Tensor, scale: Tensor, shift: Tensor, **options: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return block(x, scale, shift, **options)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    both_gradients(compiled, function, make((6, 4, 24), (4, 24)))


def test_compiled_checks_when_it_is_traced() -> None:
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"scale: expected shape \[\.\.\., d = 24\]"):
        compiled(torch.randn(6, 24), torch.randn(23), torch.randn(24))


def test_number_of_rows_known_only_at_run_time() -> None:
    """What a graph that selects tokens by a mask gives the op."""

    def function(x: Tensor, mask: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return fused(x[mask], scale, shift)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        x, table, mask = torch.randn(9, 24), torch.randn(24), torch.arange(9) % 2 == 0
        assert torch.equal(compiled(x, mask, table, table), function(x, mask, table, table))


class Norm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(4, 24))
        self.shift = torch.nn.Parameter(torch.randn(4, 24))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return fused(x, self.scale, self.shift, residual=residual)


def test_export_with_a_dynamic_batch() -> None:
    module = Norm()
    example = torch.randn(6, 1, 24), torch.randn(6, 4, 24)
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        module, example, dynamic_shapes={"x": {0: batch}, "residual": {0: batch}}
    )
    assert "conditional_layer_norm_forward" in str(program.graph)
    for size in (2, 6, 31):
        x, residual = torch.randn(size, 1, 24), torch.randn(size, 4, 24)
        assert torch.equal(program.module()(x, residual), module(x, residual))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_compiled_ahead_of_time(dtype: torch.dtype, tmp_path: Path) -> None:
    """What a C++ server runs, without Python."""
    module = Norm().to(dtype)
    example = torch.randn(6, 1, 24, dtype=dtype), torch.randn(6, 4, 24, dtype=dtype)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            module, example, dynamic_shapes={"x": {0: batch}, "residual": {0: batch}}
        )
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "norm.pt2")
        )
        loaded = torch._inductor.aoti_load_package(package)
        x = torch.randn(31, 1, 24, dtype=dtype)
        residual = torch.randn(31, 4, 24, dtype=dtype)
        found, expected = loaded(x, residual), module(x, residual)
        assert found.dtype == expected.dtype == dtype
        assert torch.equal(found, expected)


# ---- autocast ----


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("inputs", [torch.float32, *HALF])
def test_autocast(dtype: torch.dtype, inputs: torch.dtype) -> None:
    """Output in the autocast dtype, arithmetic in float32, gradients in the dtype of each input."""
    case = make((40, 4, 24), (4, 24), residual=(40, 1, 24), dtype=inputs)
    case.tensors["scale"] = case.tensors["scale"].detach().float().requires_grad_()
    exact_case = case.to(torch.float64)
    exact = exact_case.call(reference.conditional_layer_norm)
    with torch.autocast("cpu", dtype):
        out = case.call(fused)
        same = case.call(reference.conditional_layer_norm)
        on_reference = case.call(ops.conditional_layer_norm, backend="reference")
    assert out.dtype == same.dtype == on_reference.dtype == dtype
    tolerance.check("out", out, same, exact, tolerance.FORWARD)
    upstream = torch.randn_like(out)
    found, plain_ones = case.gradients(out, upstream), case.gradients(same, upstream)
    for name, truth in exact_case.gradients(exact, upstream.double()).items():
        assert found[name].dtype == case.tensors[name].dtype
        tolerance.check(name, found[name], plain_ones[name], truth, tolerance.BACKWARD)


def test_autocast_leaves_float64_alone() -> None:
    case = make((6, 24), (24,), dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert case.call(ops.conditional_layer_norm).dtype == torch.float64


# ---- what fused backends do not do ----


def test_double_backward_says_what_to_do() -> None:
    case = make((6, 24), (24,))
    out = case.call(fused)
    gradients = torch.autograd.grad(
        out.square().sum(), list(case.tensors.values()), create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"conditional_layer_norm: .*backend='reference'"):
        gradients[0].sum().backward()
    out = case.call(ops.conditional_layer_norm, backend="reference")
    gradients = torch.autograd.grad(
        out.square().sum(), list(case.tensors.values()), create_graph=True
    )
    gradients[0].square().sum().backward()


def test_functional_gradients() -> None:
    case = make((6, 24), (24,))
    x, scale, shift = (t.detach() for t in case.tensors.values())

    def loss(x: Tensor) -> Tensor:
        return fused(x, scale, shift).square().sum()

    out = case.call(fused)
    expected = case.gradients(out.square().sum(), torch.ones(()))["x"]
    assert torch.equal(torch.func.grad(loss)(x), expected)


def test_vmap_says_what_to_do() -> None:
    x, table = torch.randn(5, 3, 24), torch.randn(24)
    with pytest.raises(NotImplementedError, match=r"conditional_layer_norm: .*torch.vmap"):
        torch.vmap(fused, in_dims=(0, None, None))(x, table, table)


def test_forward_mode_says_what_to_do() -> None:
    """Its tangents would be lost below autograd, in eager calls and in graphs."""
    x, table = torch.randn(5, 24), torch.randn(24)

    def tangent(x: Tensor, backend: str) -> Tensor:
        def norm(x: Tensor) -> Tensor:
            return ops.conditional_layer_norm(x, table, table, backend=backend)

        return torch.func.jvp(norm, (x,), (x.square(),))[1]

    assert bool(tangent(x, "reference").any())
    for run in (tangent, torch.compile(tangent, backend="eager")):
        with pytest.raises(RuntimeError, match=r"conditional_layer_norm: .* forward-mode"):
            run(x, "cpu")


# ---- backends ----


def test_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTLFAST_BACKEND", raising=False)
    x, table = torch.randn(6, 24), torch.randn(24)
    op = ops.conditional_layer_norm
    assert mtlfast.explain(op, x, table, table).backend == "cpu"
    explanation = mtlfast.explain("conditional_layer_norm", x.double(), table, table)
    assert explanation.backend == "reference"
    assert "float64" in explanation.reason
    on_meta = (x.to("meta"), table.to("meta"), table.to("meta"))
    assert mtlfast.explain(op, *on_meta).backend == "reference"
    assert op(*on_meta).shape == (6, 24)
    with pytest.raises(ValueError, match="backend: expected one of"):
        mtlfast.explain(op, x, table, table, backend="fast")
    with pytest.raises(ValueError, match="scale: expected shape"):
        mtlfast.explain(op, x, table[:3], table)


def test_environment_overrides_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x, table = torch.randn(6, 24), torch.randn(24)
    op = ops.conditional_layer_norm
    monkeypatch.setenv("MTLFAST_BACKEND", "reference")
    assert mtlfast.explain(op, x, table, table).backend == "reference"
    assert mtlfast.explain(op, x, table, table, backend="cpu").backend == "cpu"
    monkeypatch.setenv("MTLFAST_BACKEND", "cuda")
    with pytest.raises(ValueError, match=r"MTLFAST_BACKEND: .*cuda"):
        op(x, table, table)


def test_bad_inputs_are_refused_by_the_public_function_too() -> None:
    x, table = torch.randn(6, 24), torch.randn(24)
    for backend in ("auto", "cpu", "reference"):
        with pytest.raises(ValueError, match=r"residual: .* found shape \[5, 24\]"):
            ops.conditional_layer_norm(x, table, table, residual=x[:5], backend=backend)
    with pytest.raises(ValueError, match=r"backend: expected one of .* found 'fast'"):
        ops.conditional_layer_norm(x, table, table, backend="fast")


def test_module_with_the_op_is_copied_and_pickled() -> None:
    module = copy.deepcopy(Norm())
    x, residual = torch.randn(6, 1, 24), torch.randn(6, 4, 24)
    expected = plain(x, module.scale, module.shift, residual=residual)
    torch.testing.assert_close(module(x, residual), expected, rtol=1e-5, atol=1e-5)
