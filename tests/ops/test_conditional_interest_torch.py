"""What torch does with the op: opcheck, compile, export, autocast, double backward, vmap."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from interest_cases import FLOATING, PARAMETERS, Case, make
from torch import Tensor

from mtlfast import ops, reference
from mtlfast.ops import _traced_reference

LENGTHS = [[3, 0, 5, 1, 0], [0, 0, 2, 17, 1]]


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


def permuted(case: Case) -> Case:
    """Matrices transposed in memory, int32 offsets."""
    tensors = {
        name: tensor.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()
        if tensor.dim() > 1
        else tensor
        for name, tensor in case.tensors.items()
    }
    return replace(case, tensors=tensors, offsets=case.offsets.to(torch.int32))


CASES = {
    "plain": make(LENGTHS),
    "permuted": permuted(make(LENGTHS)),
    "shared users": make(LENGTHS, num_candidates=7),
    "bfloat16": make(LENGTHS).with_tensors(
        **{
            name: make(LENGTHS).tensors[name].detach().bfloat16().requires_grad_()
            for name in ("values", "target")
        }
    ),
    "no events": make([[0, 0], [0, 0]]),
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str) -> None:
    case = CASES[name]
    op = torch.ops.mtlfast.conditional_interest_forward.default
    arguments = forward_arguments(case)
    torch.library.opcheck(op, arguments)
    with torch.no_grad():
        torch.library.opcheck(op, forward_arguments(case, save=False))
        out, *statistics = op(*arguments)
    backward = torch.ops.mtlfast.conditional_interest_backward.default
    detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments[:-1]]
    upstream = torch.randn(out.shape[::-1]).to(out.dtype).permute(3, 2, 1, 0)
    torch.library.opcheck(backward, (upstream, *detached, *statistics))


@pytest.mark.parametrize("name", ["plain", "shared users", "no events"])
def test_opcheck_of_the_traced_reference(name: str) -> None:
    case = CASES[name]
    values, offsets, behaviors, max_len, target, user_index, *rest = forward_arguments(case)
    parameters, (heads, eps, _) = rest[:18], rest[18:]
    shared = (values, offsets, behaviors, max_len, target, user_index, parameters, heads, eps)
    torch.library.opcheck(_traced_reference.forward_op, shared)
    detached = [a.detach() if isinstance(a, Tensor) else a for a in shared]
    detached[6] = [parameter.detach() for parameter in parameters]
    upstream = torch.randn(len(target), 2, 2, 16)
    torch.library.opcheck(_traced_reference.backward_op, (upstream, *detached))


def test_opcheck_would_notice_a_wrong_fake() -> None:
    """The fakes are exact: sizes of what is saved, and dtypes."""
    from torch._subclasses import FakeTensorMode

    case = make(LENGTHS, num_candidates=3, dtype=torch.bfloat16)
    for save in (True, False):
        arguments = forward_arguments(case, save)
        real = torch.ops.mtlfast.conditional_interest_forward(*arguments)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
            fake = torch.ops.mtlfast.conditional_interest_forward(*fakes)
        for one, other in zip(real, fake, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (
                other.shape,
                other.dtype,
                other.stride(),
            )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_equals_eager_with_gradients(backend: str, compiler: str) -> None:
    """One whole graph for any number of events, users and candidates."""
    torch.compiler.reset()

    def run(case: Case) -> Tensor:
        return case.call(ops.conditional_interest, backend=backend) * 2

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=compiler)
    generator = torch.Generator().manual_seed(0)
    for users, candidates in ((5, None), (9, None), (12, 30), (7, 11)):
        lengths = torch.randint(0, 6, (2, users), generator=generator)
        case = make(lengths, num_candidates=candidates)
        out, expected = compiled(case), run(case)
        assert torch.equal(out, expected)
        upstream = torch.randn(out.shape, generator=generator)
        gradients = case.gradients(expected, upstream)
        for name, gradient in case.gradients(out, upstream).items():
            torch.testing.assert_close(gradient, gradients[name], msg=name)


def test_dynamic_graphs_are_not_compiled_again() -> None:
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def run(case: Case) -> Tensor:
        return case.call(ops.conditional_interest)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    compiled(make(LENGTHS))
    after_first = counter.frame_count
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        compiled(make(torch.randint(1, 20, (2, 6 + seed), generator=generator)))
    assert counter.frame_count == after_first


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_compiled_under_autocast_and_no_grad(backend: str) -> None:
    torch.compiler.reset()
    case = make(LENGTHS)

    def run(case: Case) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return case.call(ops.conditional_interest, backend=backend)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    out = compiled(case)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, run(case))
    found = case.gradients(out, torch.ones_like(out))
    expected = case.gradients(run(case), torch.ones_like(out))
    for name in FLOATING:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], msg=name)
    with torch.no_grad():
        assert torch.equal(compiled(case), out)


class Interest(torch.nn.Module):
    """The op with its parameters, as a module that can be exported."""

    def __init__(self, case: Case, backend: str) -> None:
        super().__init__()
        self.parameters_ = torch.nn.ParameterList([case.tensors[name] for name in PARAMETERS])
        self.backend = backend

    def forward(self, sequences: Any, target: Tensor, user_index: Tensor) -> Tensor:
        encoder, decoder = self.parameters_[:8], self.parameters_[8:16]
        weights = ops.ConditionalTransformerWeights(
            ops.TransformerWeights(*encoder), ops.TransformerWeights(*decoder)
        )
        return ops.conditional_interest(
            sequences,
            target,
            weights,
            self.parameters_[16],
            self.parameters_[17],
            num_heads=2,
            user_index=user_index,
            backend=self.backend,
        )


def exported(backend: str, max_len: int | None = None) -> torch.export.ExportedProgram:
    """With ``max_len`` the bound is a constant of the program, without it another input."""
    case = make(LENGTHS, num_candidates=7, max_len=max_len)
    module = Interest(case, backend).requires_grad_(False).eval()
    dynamic = torch.export.Dim.AUTO
    shapes = (
        [{0: dynamic}, {0: dynamic}, None if max_len else dynamic],
        {0: dynamic},
        {0: dynamic},
    )
    detached = case.sequences.with_values(case.tensors["values"].detach())
    arguments = (detached, case.tensors["target"].detach(), case.user_index)
    return torch.export.export(module, arguments, dynamic_shapes=shapes)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_export_takes_other_sizes(backend: str) -> None:
    program = exported(backend)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, 20, (2, 3 + seed), generator=generator)
        case = make(lengths, num_candidates=4 + seed, seed=0)
        fresh = make(LENGTHS, num_candidates=7).with_tensors(
            values=case.tensors["values"], target=case.tensors["target"]
        )
        fresh = replace(
            fresh, offsets=case.offsets, max_len=case.max_len, user_index=case.user_index
        )
        out = program.module()(fresh.sequences, fresh.tensors["target"], fresh.user_index)
        assert torch.equal(out, fresh.call(ops.conditional_interest, backend=backend))


@pytest.mark.slow
def test_aot_inductor_package(tmp_path: Any) -> None:
    """AOTInductor has no integer inputs, so the bound is a constant."""
    path = torch._inductor.aoti_compile_and_package(
        exported("cpu", max_len=2048), package_path=str(tmp_path / "interest.pt2")
    )
    runner = torch._inductor.aoti_load_package(path)
    with torch.no_grad():
        for lengths, candidates in ((LENGTHS, 7), ([[1, 0, 30], [0, 2, 0]], 12)):
            case = make(lengths, num_candidates=candidates, max_len=2048)
            parameters = {name: make(LENGTHS).tensors[name] for name in PARAMETERS}
            case = case.with_tensors(**parameters)
            out = runner(case.sequences, case.tensors["target"], case.user_index)
            assert torch.equal(out, case.call(ops.conditional_interest))


def test_double_backward_works_in_the_reference_and_is_refused_by_the_kernel() -> None:
    case = make(LENGTHS)
    for backend in ("reference", "cpu"):
        out = case.call(ops.conditional_interest, backend=backend)
        (first,) = torch.autograd.grad(
            out.square().sum(), case.tensors["target"], create_graph=True
        )
        if backend == "reference":
            first.sum().backward()
            assert bool(case.tensors["values"].grad.any())
            continue
        with pytest.raises(RuntimeError, match="fused backends have first-order gradients only"):
            first.sum().backward()


def test_vmap_is_refused_with_a_reason() -> None:
    case = make(LENGTHS)
    targets = torch.randn(3, 5, 16)

    def run(target: Tensor) -> Tensor:
        return case.with_tensors(target=target).call(ops.conditional_interest)

    with pytest.raises(NotImplementedError, match=r"cannot run under torch\.vmap"):
        torch.vmap(run)(targets)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_forward_mode_is_right_or_refused(backend: str) -> None:
    """Never a tangent of zeros, not from compiled graphs either."""
    case = make(LENGTHS)
    target = case.tensors["target"].detach()

    def tangent(target: Tensor) -> Tensor:
        def run(target: Tensor) -> Tensor:
            return case.with_tensors(target=target).call(ops.conditional_interest, backend=backend)

        return torch.func.jvp(run, (target,), (target,))[1]

    refused = [torch.compile(tangent, fullgraph=True, backend="eager")]
    if backend == "reference":
        assert bool(tangent(target).any())
    else:
        refused.append(tangent)
    for function in refused:
        with pytest.raises(RuntimeError, match=r"conditional_interest: .* forward-mode"):
            function(target)


def test_checkpointing_recomputes() -> None:
    case = make(LENGTHS)

    def run(target: Tensor) -> Tensor:
        return case.with_tensors(target=target).call(ops.conditional_interest)

    target = case.tensors["target"]
    out = torch.utils.checkpoint.checkpoint(run, target, use_reentrant=False)
    (found,) = torch.autograd.grad(out.sum(), target)
    (expected,) = torch.autograd.grad(run(target).sum(), target)
    assert torch.equal(found, expected)


def test_functorch_grad() -> None:
    case = make(LENGTHS)

    def run(target: Tensor) -> Tensor:
        return case.with_tensors(target=target).call(ops.conditional_interest).square().sum()

    target = case.tensors["target"].detach()
    (expected,) = torch.autograd.grad(run(case.tensors["target"]), case.tensors["target"])
    assert torch.equal(torch.func.grad(run)(target), expected)


def test_eager_calls_equal_the_registered_op() -> None:
    """Eager calls go around the registered autograd formula, with the same results."""
    case = make(LENGTHS, num_candidates=7)
    out = case.call(ops.conditional_interest)
    registered = torch.ops.mtlfast.conditional_interest_forward(*forward_arguments(case))[0]
    assert torch.equal(out, registered)
    expected = case.gradients(registered, torch.ones_like(out))
    for name, gradient in case.gradients(out, torch.ones_like(out)).items():
        assert torch.equal(gradient, expected[name]), name


def test_nothing_is_saved_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    door = sys.modules["mtlfast.ops.conditional_interest"]
    call = door._cpu

    def spy(*arguments: Any) -> Any:
        seen.append(arguments[-1])
        return call(*arguments)

    monkeypatch.setattr(door, "_cpu", spy)
    case = make(LENGTHS)
    case.call(ops.conditional_interest)
    with torch.no_grad():
        case.call(ops.conditional_interest)
    detached = {name: tensor.detach() for name, tensor in case.tensors.items()}
    case.with_tensors(**detached).call(ops.conditional_interest)
    assert seen == [True, False, False]


def test_same_names_as_the_reference() -> None:
    for name in reference.__all__:
        assert name in ops.__all__
    assert ops.ConditionalTransformerWeights is reference.ConditionalTransformerWeights
