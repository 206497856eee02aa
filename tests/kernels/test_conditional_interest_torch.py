"""What torch does with the Triton op: opcheck, compile, export, autocast, double backward, vmap."""

from __future__ import annotations

from typing import Any

import gpu
import pytest
import torch
import torch._dynamo.testing
from gpu import on_device
from interest_cases import FLOATING, PARAMETERS, Case, make
from torch import Tensor

import mtlfast
from mtlfast import _extension, ops

pytestmark = pytest.mark.skipif("triton" not in gpu.BACKENDS, reason="triton is not installed")
LENGTHS = [[2, 0, 1]]


def small(candidates: int | None = None, **options: Any) -> Case:
    return on_device(make(LENGTHS, num_tasks=1, num_candidates=candidates, **options))


def fused(case: Case) -> Tensor:
    return case.call(ops.conditional_interest, backend="triton")


def forward_arguments(case: Case, save: bool = True) -> tuple[Any, ...]:
    return (
        case.tensors["values"],
        case.offsets,
        case.num_behaviors,
        case.max_len,
        case.tensors["target"],
        case.user_index,
        *(case.tensors[name] for name in PARAMETERS),
        case.num_heads,
        case.eps,
        save,
    )


@pytest.mark.parametrize("candidates", [4, None] if gpu.HAS_GPU else [4])
def test_opcheck(candidates: int | None) -> None:
    case = small(candidates)
    op = torch.ops.mtlfast.conditional_interest_triton_forward.default
    gpu.opcheck(op, forward_arguments(case))
    with torch.no_grad():
        out, *statistics = op(*forward_arguments(case))
    backward = torch.ops.mtlfast.conditional_interest_triton_backward.default
    detached = [a.detach() if isinstance(a, Tensor) else a for a in forward_arguments(case)[:-1]]
    upstream = torch.randn(out.shape[::-1], device=out.device).permute(3, 2, 1, 0)
    gpu.opcheck(backward, (upstream, *detached, *statistics))


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fakes_are_exact(save: bool, dtype: torch.dtype) -> None:
    from torch._subclasses import FakeTensorMode

    arguments = forward_arguments(small(4, d=24, num_heads=3, dtype=dtype), save)
    real = torch.ops.mtlfast.conditional_interest_triton_forward(*arguments)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        fake = torch.ops.mtlfast.conditional_interest_triton_forward(*fakes)
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_equals_eager_with_gradients(compiler: str) -> None:
    """One whole graph for any number of events, users and candidates."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(compiler)
    compiled = torch.compile(
        lambda case: fused(case) * 2, fullgraph=True, dynamic=True, backend=counter
    )
    generator = torch.Generator().manual_seed(0)
    counts = []
    for users, candidates in ((4, 7), (6, 9)):
        lengths = torch.randint(1, 4, (2, users), generator=generator)
        case = on_device(make(lengths, num_tasks=1, num_candidates=candidates))
        out, expected = compiled(case), fused(case) * 2
        counts.append(counter.frame_count)
        assert torch.equal(out, expected)
        gradients = case.gradients(expected, torch.ones_like(out))
        for name, gradient in case.gradients(out, torch.ones_like(out)).items():
            torch.testing.assert_close(gradient, gradients[name], msg=name)
    # The compiler may start over once while it makes the first graph (over the number `eps`).
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    case = small()
    with torch.autocast(gpu.DEVICE, dtype=dtype):
        out = fused(case)
    assert out.dtype == dtype
    exact = case.to(torch.float64).call(mtlfast.reference.conditional_interest)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=8 * eps, atol=8 * eps)
    gradients = case.gradients(out, torch.ones_like(out))
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def test_export() -> None:
    class Interest(torch.nn.Module):
        def forward(self, tensors: dict[str, Tensor], offsets: Tensor, users: Tensor) -> Tensor:
            case = Case(tensors, offsets, 1, 50, 2, users)
            return fused(case)

    case = small(4)
    tensors = {name: tensor.detach() for name, tensor in case.tensors.items()}
    dynamic = torch.export.Dim.AUTO
    shapes = {name: {0: dynamic} if name in ("values", "target") else None for name in tensors}
    program = torch.export.export(
        Interest(),
        (tensors, case.offsets, case.user_index),
        dynamic_shapes=(shapes, {0: dynamic}, {0: dynamic}),
    )
    other = on_device(make([[1, 3, 0, 2]], num_tasks=1, num_candidates=6))
    found = program.module()(
        {name: tensor.detach() for name, tensor in other.tensors.items()},
        other.offsets,
        other.user_index,
    )
    assert torch.equal(found, fused(other))


def test_double_backward_and_vmap_are_refused_with_a_reason() -> None:
    case = small()
    out = fused(case)
    (first,) = torch.autograd.grad(out.square().sum(), case.tensors["target"], create_graph=True)
    with pytest.raises(RuntimeError, match="fused backends have first-order gradients only"):
        first.sum().backward()
    targets = torch.randn(2, 3, 16, device=gpu.DEVICE)
    with pytest.raises(NotImplementedError, match=r"cannot run under torch\.vmap"):
        torch.vmap(lambda target: fused(case.with_tensors(target=target)))(targets)


def test_nothing_is_kept_without_gradients() -> None:
    saved = torch.ops.mtlfast.conditional_interest_triton_forward(
        *forward_arguments(small(), save=False)
    )[1:]
    assert [tensor.numel() for tensor in saved] == [0] * 4


def test_explain() -> None:
    case = small()
    text = str(mtlfast.explain(ops.conditional_interest, *case.args, **case.kwargs))
    fastest_on_cpu = "cpu" if _extension.cpu_ops_available() else "reference"
    assert f"runs on backend {'triton' if gpu.HAS_GPU else fastest_on_cpu!r}" in text
    asked = mtlfast.explain(ops.conditional_interest, *case.args, **case.kwargs, backend="triton")
    assert asked.backend == "triton"
    assert "device:" in asked.reason


def test_every_gradient_can_be_left_out() -> None:
    case = small()
    expected = case.gradients(fused(case), torch.ones(3, 1, 1, 16, device=gpu.DEVICE))
    for name in FLOATING[::5]:
        only = {n: t.detach().requires_grad_(n == name) for n, t in case.tensors.items()}
        out = fused(case.with_tensors(**only))
        (found,) = torch.autograd.grad(out.sum(), only[name])
        assert torch.equal(found, expected[name]), name
