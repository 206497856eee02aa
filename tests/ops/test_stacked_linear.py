"""The fused ``stacked_linear`` against the reference, and inside torch."""

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

NAMES = ("x", "weight", "bias")


def make(
    streams: int, rows: int, groups: int, width: int, in_dim: int, has_bias: bool = True
) -> list[Tensor | None]:
    x = torch.randn(streams, rows, in_dim)
    weight = torch.randn(groups, width, in_dim) * in_dim**-0.5
    bias = torch.randn(groups, width) if has_bias else None
    return [x, weight, bias]


def run(op: Any, inputs: list[Tensor | None], upstream: Tensor, **options: Any) -> list[Tensor]:
    leaves = [None if t is None else t.detach().to(upstream.dtype).requires_grad_() for t in inputs]
    out = op(*leaves, **options)
    present = [leaf for leaf in leaves if leaf is not None]
    return [out.detach(), *torch.autograd.grad(out, present, upstream)]


SHAPES = [
    # streams, rows, groups, width, in
    (1, 700, 4, 128, 352),
    (4, 300, 4, 64, 128),
    (2, 131, 6, 7, 19),
    (3, 97, 3, 1, 64),
    (1, 193, 1, 65, 8),
    (2, 1, 2, 16, 16),
    (1, 40, 5, 3, 1),
]


def test_expanded_inputs() -> None:
    inputs = make(2, 80, 4, 24, 40)
    upstream = torch.randn(4, 80, 24)
    for i, t in enumerate(inputs):
        assert t is not None
        for dim in range(t.dim()):
            given = [*inputs[:i], expanded(t, dim), *inputs[i + 1 :]]
            found = run(ops.stacked_linear, given, upstream, backend="cpu")
            copies = [None if t is None else dense(t) for t in given]
            truth = run(ops.stacked_linear, copies, upstream, backend="cpu")
            for one, other in zip(found, truth, strict=True):
                assert torch.equal(one, other), (NAMES[i], dim)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_agrees_with_the_reference(shape: Any, relu: bool, has_bias: bool) -> None:
    torch.manual_seed(sum(shape))
    inputs = make(*shape, has_bias=has_bias)
    upstream = torch.randn(shape[2], shape[1], shape[3])
    if relu:  # nothing close to a kink may decide the gradients
        pre = reference.stacked_linear(*inputs)  # type: ignore[arg-type]
        upstream[pre.abs() < 1e-4] = 0
    truth = run(reference.stacked_linear, inputs, upstream.double(), relu=relu)
    plain = run(reference.stacked_linear, inputs, upstream, relu=relu)
    fused = run(ops.stacked_linear, inputs, upstream, relu=relu, backend="cpu")
    tolerance.check("out", fused[0], plain[0], truth[0], tolerance.FORWARD)
    for name, a, b, c in zip(NAMES, fused[1:], plain[1:], truth[1:], strict=False):
        tolerance.check(name, a, b, c, tolerance.BACKWARD)


def strided(t: Tensor) -> Tensor:
    """The same numbers, every other one of a permuted buffer."""
    wide = torch.full((*t.shape[::-1], 2), float("nan"))
    view = wide[..., 0].permute(*reversed(range(t.dim())))
    return view.copy_(t)


@pytest.mark.parametrize("shape", [(2, 131, 6, 7, 19), (1, 100, 2, 32, 16)], ids=str)
def test_any_strides(shape: Any) -> None:
    inputs = make(*shape)
    upstream = torch.randn(shape[2], shape[1], shape[3])
    expected = run(ops.stacked_linear, inputs, upstream, relu=True, backend="cpu")
    leaves = [strided(t).requires_grad_() for t in inputs if t is not None]
    out = ops.stacked_linear(*leaves, relu=True, backend="cpu")
    grads = torch.autograd.grad(out, leaves, strided(upstream))
    for a, b in zip((out, *grads), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 1500, 4, 24, 40), (4, 900, 4, 64, 128)], ids=str)
def test_bits_do_not_depend_on_threads(shape: Any) -> None:
    inputs, upstream = make(*shape), torch.randn(shape[2], shape[1], shape[3])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(ops.stacked_linear, inputs, upstream, relu=True, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays_in_its_row(relu: bool) -> None:
    x, weight, bias = make(1, 300, 2, 24, 40)
    assert x is not None
    x[0, 17, 3] = float("nan")
    upstream = torch.randn(2, 300, 24)
    out, grad_x, *_ = run(ops.stacked_linear, [x, weight, bias], upstream, relu=relu, backend="cpu")
    rows = torch.isnan(out).all(-1)
    assert rows[:, 17].all()
    assert not torch.isnan(out[:, torch.arange(300) != 17]).any()
    assert not torch.isnan(grad_x).any()  # gradients of x are of the weights alone


@pytest.mark.parametrize("shape", [(1, 0, 2, 8, 8), (2, 0, 2, 3, 5)], ids=str)
def test_no_rows(shape: Any) -> None:
    inputs, upstream = make(*shape), torch.zeros(shape[2], shape[1], shape[3])
    out, grad_x, grad_weight, grad_bias = run(
        ops.stacked_linear, inputs, upstream, relu=True, backend="cpu"
    )
    assert out.shape == upstream.shape
    assert grad_x.numel() == 0
    assert not grad_weight.any()
    assert not grad_bias.any()


@pytest.mark.parametrize("shape", [(1, 30, 2, 8, 16), (2, 30, 2, 3, 5), (2, 9, 6, 3, 5)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_opcheck(shape: Any, has_bias: bool) -> None:
    inputs = [None if t is None else t.requires_grad_() for t in make(*shape, has_bias=has_bias)]
    torch.library.opcheck(torch.ops.mtlfast.stacked_linear_forward, (*inputs, True))
    x, weight, bias = (None if t is None else t.detach() for t in inputs)
    out = torch.ops.mtlfast.stacked_linear_forward(x, weight, bias, True)
    for need_x in (False, True):
        torch.library.opcheck(
            torch.ops.mtlfast.stacked_linear_backward,
            (torch.randn_like(out), x, weight, bias, out, True, need_x),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_compiled_equals_eager_for_any_batch_size() -> None:
    inputs = make(1, 600, 3, 16, 24)
    compiled = torch.compile(ops.stacked_linear, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (600, 40, 999):
        inputs[0] = torch.randn(1, rows, 24)
        upstream = torch.randn(3, rows, 16)
        for a, b in zip(
            run(compiled, inputs, upstream, relu=True),
            run(ops.stacked_linear, inputs, upstream, relu=True, backend="cpu"),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_sums_over_many_rows() -> None:
    """Rounding errors of a bias do not add up over the rows of a large batch."""
    inputs = make(1, 20_000, 1, 256, 2)
    upstream = torch.rand(1, 20_000, 256)
    truth = run(reference.stacked_linear, inputs, upstream.double())
    plain = run(reference.stacked_linear, inputs, upstream)
    fused = run(ops.stacked_linear, inputs, upstream, backend="cpu")
    for name, found, unfused, exact in zip(NAMES, fused[1:], plain[1:], truth[1:], strict=True):
        tolerance.check(name, found, unfused, exact, tolerance.BACKWARD)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_sums_over_many_inputs(width: int) -> None:
    """Products of few outputs, which PyTorch sums lane by lane, are as accurate as its own."""
    x, weight = torch.randn(2, 4_000, 128), torch.randn(2, width, 128)
    truth = reference.stacked_linear(x.double(), weight.double())
    plain = reference.stacked_linear(x, weight)
    fused = ops.stacked_linear(x, weight, backend="cpu")
    tolerance.check("out", fused, plain, truth, factor=1.5)


@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
def test_the_environments_backend_does_not_bind(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads in bfloat16, or on a GPU, go on with torch's products."""
    monkeypatch.setenv("MTLFAST_BACKEND", backend)
    x, weight, bias = (t.bfloat16() for t in make(1, 700, 2, 8, 16) if t is not None)
    assert explain("stacked_linear", x, weight, bias).backend == "reference"
    assert ops.stacked_linear(x, weight, bias).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="backend: expected one that can run stacked_linear"):
        ops.stacked_linear(x, weight, bias, backend=backend)


def test_explain_says_why() -> None:
    x, weight, bias = make(1, 600, 3, 16, 24)
    assert explain("stacked_linear", x, weight, bias).backend == "cpu"
    assert "fewer than 512 rows" in explain("stacked_linear", x[:, :100], weight).reason  # type: ignore[index]
    assert "float64" in explain("stacked_linear", x.double(), weight.double()).reason  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in explain("stacked_linear", x, weight).reason
        assert ops.stacked_linear(x, weight, bias).dtype == torch.bfloat16


def test_second_order_gradients_are_refused() -> None:
    x, weight, bias = (t.requires_grad_() for t in make(1, 4, 2, 3, 5) if t is not None)
    out = ops.stacked_linear(x, weight, bias, backend="cpu")
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first-order"):
        grad.sum().backward()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"^weight: expected"):
        ops.stacked_linear(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"^backend: expected"):
        ops.stacked_linear(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), backend="none")


def test_listed() -> None:
    assert mtlfast.ops.stacked_linear is ops.stacked_linear
