"""``gated_cross``: the public function, and what torch must know of its C++ op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference as _reference
from ..reference.gated_cross import check_arguments
from . import _backend, _native, _products


def gated_cross(
    x: Tensor, x0: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto"
) -> Tensor:
    """The gated cross layers of ``G`` networks (GDCN, Wang et al., CIKM 2023)::

        y_g = x_g + x0_g * (x_g Wc_g^T + b_g) * sigmoid(x_g Wg_g^T)

    :func:`mtlfast.reference.gated_cross` is the definition. The C++ op makes both products of a
    block of rows and gates them before they leave the cache; its backward makes all gradients in
    one pass over the rows. It takes float32; other dtypes, autocast and fewer than 512 rows run on
    torch's products, also where MTLFAST_BACKEND names another backend for the ops around it.
    Results have the same bits for any number of threads.

    Args:
        x: ``[G, R, D]``, what the layer below put out; any strides, also one input expanded.
        x0: ``[G, R, D]``, the input of the first layer; likewise.
        weight: ``[G, 2*D, D]`` in ``nn.Linear`` layout, first the rows of ``Wc``, then of ``Wg``.
        bias: ``[G, D]``.
        backend: "auto", "cpu" (C++) or "reference"; see :func:`mtlfast.explain`.

    Returns:
        ``[G, R, D]``.

    Raises:
        ValueError: shapes or devices that do not agree; a backend that cannot run here.
        RuntimeError: a gradient of a gradient is taken on a fused backend.
    """
    check_arguments(x, x0, weight, bias)
    tensors = (x, x0, weight, bias)
    chosen, _ = _choose(backend, *tensors)
    if chosen == "reference":
        return _reference.gated_cross(*tensors)
    assert _cpu is not None  # _choose has seen to that
    # Values and gates are written only where there will be a backward.
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    out, _, _ = _cpu(*tensors, save)
    return out


@_backend.explains("gated_cross")
def _explain(
    x: Tensor, x0: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto"
) -> _backend.Explanation:
    check_arguments(x, x0, weight, bias)
    return _backend.Explanation("gated_cross", *_choose(backend, x, x0, weight, bias))


def _choose(backend: str, x: Tensor, *others: Tensor) -> tuple[str, str]:
    return _products.choose("gated_cross", backend, x, others, _HAS_CPU_OP)


# ---- the C++ op: schema in csrc/schemas.cpp ----

_HAS_CPU_OP = _products.has_cpu_op("gated_cross")


def _fake_forward(
    x: Tensor, x0: Tensor, weight: Tensor, bias: Tensor, save_for_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    saved = x.shape if save_for_backward else (0, *x.shape[1:])
    return x.new_empty(x.shape), x.new_empty(saved), x.new_empty(saved)


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    x0: Tensor,
    weight: Tensor,
    value: Tensor,
    gate: Tensor,
    need_x: bool,
    need_x0: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups, rows, width = x.shape
    return (
        x.new_empty((groups if need_x else 0, rows, width)),
        x.new_empty((groups if need_x0 else 0, rows, width)),
        weight.new_empty(weight.shape),
        weight.new_empty((groups, width)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, x0, weight, _, save = inputs
    _, value, gate = output
    ctx.mark_non_differentiable(value, gate)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, x0, weight, value, gate)
    ctx.save = save


def _backward(
    op: Callable[..., Any], ctx: Any, grad_out: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 5
    if not ctx.save:
        raise RuntimeError("gated_cross_forward: no backward with save_for_backward=False")
    needed = ctx.needs_input_grad[:4]
    grads = op(grad_out, *ctx.saved_tensors, needed[0], needed[1])
    return (*(grad if need else None for grad, need in zip(grads, needed, strict=True)), None)


_cpu = (
    _native.differentiable(
        "gated_cross",
        fake_forward=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_backward,
    )
    if _HAS_CPU_OP
    else None
)
