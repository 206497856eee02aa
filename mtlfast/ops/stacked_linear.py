"""``stacked_linear``: the public function, and what torch must know of its C++ op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import reference as _reference
from ..reference.stacked_linear import check_arguments
from . import _backend, _native, _products


def stacked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """``G`` linear maps, of which each of ``S`` inputs feeds ``G / S`` consecutive ones::

        y_g = act(x_s W_g^T + b_g),   s = g // (G / S)

    The experts, gates and towers of multi-task heads are such maps.
    :func:`mtlfast.reference.stacked_linear` is the definition. The C++ op adds the bias and
    rectifies in registers; its backward makes all gradients in one pass over the rows. It takes
    float32; other dtypes, autocast and fewer than 512 rows run on torch's products, also where
    MTLFAST_BACKEND names another backend for the ops around it. Results have the same bits for any
    number of threads.

    Args:
        x: ``[S, R, in]``, rows of ``S`` inputs, any strides.
        weight: ``[G, out, in]``, each map in ``nn.Linear`` layout; ``S`` divides ``G``.
        bias: ``[G, out]``.
        relu: followed by a ReLU.
        backend: "auto", "cpu" (C++) or "reference"; see :func:`mtlfast.explain`.

    Returns:
        ``[G, R, out]``, possibly a transposed view.

    Raises:
        ValueError: shapes or devices that do not agree; a backend that cannot run here.
        RuntimeError: a gradient of a gradient is taken on a fused backend.
    """
    check_arguments(x, weight, bias)
    chosen, _ = _choose(backend, x, weight, bias)
    if chosen == "reference":
        return _reference.stacked_linear(x, weight, bias, relu=relu)
    assert _cpu is not None  # _choose has seen to that
    out = _cpu(x, weight, bias, relu).transpose(1, 2)  # [S, G / S, R, out]
    # Views, whose gradients are views again; only several maps of several inputs cost a copy.
    if x.shape[0] == 1:
        return out.squeeze(0)
    return out.squeeze(1) if weight.shape[0] == x.shape[0] else out.flatten(0, 1)


@_backend.explains("stacked_linear")
def _explain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    backend: str = "auto",
) -> _backend.Explanation:
    check_arguments(x, weight, bias)
    return _backend.Explanation("stacked_linear", *_choose(backend, x, weight, bias))


def _choose(backend: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[str, str]:
    return _products.choose("stacked_linear", backend, x, (weight, bias), _HAS_CPU_OP)


# ---- the C++ op: schema in csrc/schemas.cpp ----

_HAS_CPU_OP = _products.has_cpu_op("stacked_linear")


def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    streams, rows, _ = x.shape
    groups, width, _ = weight.shape
    return x.new_empty((streams, rows, groups // streams, width))


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    relu: bool,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    streams, rows, in_dim = x.shape
    groups, width, _ = weight.shape
    return (
        x.new_empty((streams if need_x else 0, rows, in_dim)),
        weight.new_empty(weight.shape),
        weight.new_empty((0 if bias is None else groups, width)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, relu = inputs
    ctx.set_materialize_grads(False)
    # The output is kept for its ReLU alone.
    ctx.save_for_backward(x, weight, bias, output if relu else weight)
    ctx.relu = relu


def _backward(op: Callable[..., Any], ctx: Any, grad_out: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return None, None, None, None
    x, weight, bias, out = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = op(
        grad_out, x, weight, bias, out, ctx.relu, ctx.needs_input_grad[0]
    )
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    return (
        grad_x if needs_x else None,
        grad_weight if needs_weight else None,
        grad_bias if needs_bias else None,
        None,
    )


_cpu = (
    _native.differentiable(
        "stacked_linear",
        fake_forward=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_backward,
    )
    if _HAS_CPU_OP
    else None
)
