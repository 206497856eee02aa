"""The fused ``gated_cross`` against the reference, and inside torch."""

from __future__ import annotations

from typing import Any

import pytest
import tolerance
import torch
from leaves import dense, expanded
from torch import Tensor

import mtlfast
from mtlfast import ops, reference
from mtlfast.ops import explain

NAMES = ("x", "x0", "weight", "bias")


def make(groups: int, rows: int, width: int) -> list[Tensor]:
    x, x0 = (torch.randn(groups, rows, width) for _ in range(2))
    return [
        x,
        x0,
        torch.randn(groups, 2 * width, width) * max(width, 1) ** -0.5,
        torch.randn(groups, width),
    ]


def run(op: Any, inputs: list[Tensor], upstream: Tensor, **options: Any) -> list[Tensor]:
    leaves = [t.detach().to(upstream.dtype).requires_grad_() for t in inputs]
    groups = leaves[2].shape[0]
    x, x0 = (t.expand(groups, -1, -1) for t in leaves[:2])  # where one input feeds all
    out = op(x, x0, *leaves[2:], **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def check_against_reference(inputs: list[Tensor], upstream: Tensor) -> None:
    truth = run(reference.gated_cross, inputs, upstream.double())
    plain = run(reference.gated_cross, inputs, upstream)
    fused = run(ops.gated_cross, inputs, upstream, backend="cpu")
    tolerance.check("out", fused[0], plain[0], truth[0], tolerance.FORWARD)
    for name, a, b, c in zip(NAMES, fused[1:], plain[1:], truth[1:], strict=True):
        tolerance.check(name, a, b, c, tolerance.BACKWARD)


SHAPES = [(4, 700, 368), (2, 131, 19), (3, 97, 1), (1, 193, 65), (2, 1, 16), (1, 400, 128)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [(), (0,), (0, 1)], ids=str)
def test_agrees_with_the_reference(shape: Any, shared: tuple[int, ...]) -> None:
    torch.manual_seed(sum(shape))
    inputs = make(*shape)
    for i in shared:  # one input of all networks, as in the first layer
        inputs[i] = inputs[i][:1]
    check_against_reference(inputs, torch.randn(shape))


def test_expanded_inputs() -> None:
    inputs = make(3, 80, 24)
    upstream = torch.randn(3, 80, 24)
    for i, t in enumerate(inputs):
        for dim in range(t.dim()):
            given = [*inputs[:i], expanded(t, dim), *inputs[i + 1 :]]
            found = run(ops.gated_cross, given, upstream, backend="cpu")
            truth = run(ops.gated_cross, [dense(t) for t in given], upstream, backend="cpu")
            for one, other in zip(found, truth, strict=True):
                assert torch.equal(one, other), (NAMES[i], dim)


def test_large_inputs_saturate_the_gate() -> None:
    """Finite where the exponential of a gate's input would overflow; exact at the ends."""
    torch.manual_seed(0)
    inputs = make(1, 200, 24)
    inputs[0] *= 300
    check_against_reference(inputs, torch.randn(1, 200, 24))
    x = torch.full((1, 4, 1), 1.0)
    for sign, gate in ((1.0, 1.0), (-1.0, 0.0)):
        weight = torch.tensor([[[1.0], [sign * float("inf")]]])
        out = ops.gated_cross(x, 2 * x, weight, torch.zeros(1, 1), backend="cpu")
        assert torch.equal(out, torch.full_like(x, 1.0 + 2.0 * gate))


def test_only_the_gradients_that_are_asked_for() -> None:
    inputs, upstream = make(2, 300, 24), torch.randn(2, 300, 24)
    every = run(ops.gated_cross, inputs, upstream, backend="cpu")[1:]
    for wanted in range(4):
        leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(inputs)]
        out = ops.gated_cross(*leaves, backend="cpu")
        (grad,) = torch.autograd.grad(out, leaves[wanted], upstream)
        assert torch.equal(grad, every[wanted])


def strided(t: Tensor) -> Tensor:
    """The same numbers, every other one of a permuted buffer."""
    wide = torch.full((*t.shape[::-1], 2), float("nan"))
    view = wide[..., 0].permute(*reversed(range(t.dim())))
    return view.copy_(t)


@pytest.mark.parametrize("shape", [(2, 131, 19), (1, 100, 32)], ids=str)
def test_any_strides(shape: Any) -> None:
    inputs, upstream = make(*shape), torch.randn(shape)
    expected = run(ops.gated_cross, inputs, upstream, backend="cpu")
    leaves = [strided(t).requires_grad_() for t in inputs]
    out = ops.gated_cross(*leaves, backend="cpu")
    grads = torch.autograd.grad(out, leaves, strided(upstream))
    for a, b in zip((out, *grads), expected, strict=True):
        assert torch.equal(a, b)
    ones = torch.autograd.grad(ops.gated_cross(*leaves, backend="cpu").sum(), leaves)
    for a, b in zip(
        ones,
        run(ops.gated_cross, inputs, torch.ones(shape), backend="cpu")[1:],
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 1500, 40), (4, 900, 72)], ids=str)
def test_bits_do_not_depend_on_threads(shape: Any) -> None:
    inputs, upstream = make(*shape), torch.randn(shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(ops.gated_cross, inputs, upstream, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("broken", [0, 1])
def test_nan_stays_in_its_row(broken: int) -> None:
    inputs = make(2, 300, 24)
    inputs[broken][1, 17, 3] = float("nan")
    out, grad_x, grad_x0, *_ = run(ops.gated_cross, inputs, torch.randn(2, 300, 24), backend="cpu")
    for found in (out, grad_x, grad_x0):
        rows = torch.isnan(found).any(-1)
        assert not rows[0].any()
        assert not rows[1, torch.arange(300) != 17].any()
    assert torch.isnan(out[1, 17]).any()


@pytest.mark.parametrize("shape", [(2, 0, 8), (0, 3, 8), (2, 3, 0)], ids=str)
def test_nothing_to_do(shape: Any) -> None:
    out, *grads = run(ops.gated_cross, make(*shape), torch.zeros(shape), backend="cpu")
    assert out.shape == shape
    assert not any(grad.any() for grad in grads)


def test_opcheck() -> None:
    inputs = [t.requires_grad_() for t in make(2, 30, 19)]
    torch.library.opcheck(torch.ops.mtlfast.gated_cross_forward, (*inputs, True))
    torch.library.opcheck(
        torch.ops.mtlfast.gated_cross_forward, (*(t.detach() for t in inputs), False)
    )
    x, x0, weight, bias = (t.detach() for t in inputs)
    out, value, gate = torch.ops.mtlfast.gated_cross_forward(x, x0, weight, bias, True)
    for need_x, need_x0 in ((True, False), (False, True)):
        torch.library.opcheck(
            torch.ops.mtlfast.gated_cross_backward,
            (torch.randn_like(out), x, x0, weight, value, gate, need_x, need_x0),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_no_backward_without_what_it_reads() -> None:
    inputs = [t.requires_grad_() for t in make(1, 4, 3)]
    out, *_ = torch.ops.mtlfast.gated_cross_forward(*inputs, False)
    with pytest.raises(RuntimeError, match="save_for_backward=False"):
        out.sum().backward()


def test_compiled_equals_eager_for_any_batch_size() -> None:
    inputs = make(2, 600, 24)
    compiled = torch.compile(ops.gated_cross, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (600, 40, 999):
        inputs[:2] = torch.randn(2, 2, rows, 24)
        upstream = torch.randn(2, rows, 24)
        for a, b in zip(
            run(compiled, inputs, upstream),
            run(ops.gated_cross, inputs, upstream, backend="cpu"),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_the_environments_backend_does_not_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLFAST_BACKEND", "triton")
    inputs = make(2, 600, 8)
    assert explain("gated_cross", *inputs).backend == "reference"
    assert torch.equal(ops.gated_cross(*inputs), reference.gated_cross(*inputs))


def test_explain_says_why() -> None:
    inputs = make(2, 600, 8)
    assert explain("gated_cross", *inputs).backend == "cpu"
    few = explain("gated_cross", *(t[:, :100] for t in inputs[:2]), *inputs[2:])
    assert "fewer than 512 rows" in few.reason
    assert "float64" in explain("gated_cross", *(t.double() for t in inputs)).reason
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in explain("gated_cross", *inputs).reason
    with pytest.raises(ValueError, match="backend: expected one that can run gated_cross"):
        ops.gated_cross(*inputs, backend="triton")


def test_the_network_runs_it() -> None:
    """Three layers of two networks on one input: fused and reference, with gradients."""
    torch.manual_seed(0)
    network = mtlfast.interactions.GatedCrossNetwork(3, 8, num_layers=3, num_modules=2)
    for bias in network.biases:
        torch.nn.init.normal_(bias)
    results = []
    for dtype, backend in (
        (torch.float32, "auto"),
        (torch.float32, "reference"),
        (torch.float64, "auto"),
    ):
        fields = torch.randn(600, 3, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
        network = network.to(dtype)
        leaves = [fields.requires_grad_(), *network.parameters()]
        with pytest.MonkeyPatch.context() as patch:
            if backend == "reference":
                patch.setattr(
                    mtlfast.interactions.gdcn, "gated_cross", mtlfast.reference.gated_cross
                )
            out = network(fields)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    fused, plain, truth = results
    tolerance.check("out", fused[0], plain[0], truth[0], tolerance.FORWARD)
    for i in range(1, len(truth)):
        tolerance.check(str(i), fused[i], plain[i], truth[i], tolerance.BACKWARD)


def test_second_order_gradients_are_refused() -> None:
    inputs = [t.requires_grad_() for t in make(1, 4, 3)]
    out = ops.gated_cross(*inputs, backend="cpu")
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="first-order"):
        grad.sum().backward()
