"""The reference of ``conditional_interest`` as one opaque op, for compiled and exported graphs.

The reference looks at the lengths of the sequences, which a traced graph cannot. Where no fused
backend runs, graphs call this op, and it calls the reference. ``parameters`` are the 8 encoder
weights, the 8 decoder weights, scale and shift; all floating tensors have one dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..dtypes import without_autocast
from ..jagged import JaggedSequences
from ..reference.conditional_interest import (
    ConditionalTransformerWeights,
    TransformerWeights,
    conditional_interest,
)

_SIDE = len(TransformerWeights._fields)


def _reference(
    values: Tensor,
    offsets: Tensor,
    num_behaviors: int,
    max_len: int,
    target: Tensor,
    user_index: Tensor | None,
    parameters: list[Tensor],
    num_heads: int,
    eps: float,
) -> Tensor:
    encoder, decoder = parameters[:_SIDE], parameters[_SIDE : 2 * _SIDE]
    try:
        # The caller has applied the autocast rule already.
        with without_autocast(target.device):
            return conditional_interest(
                JaggedSequences(values, offsets, num_behaviors, max_len),
                target,
                ConditionalTransformerWeights(
                    TransformerWeights(*encoder), TransformerWeights(*decoder)
                ),
                parameters[-2],
                parameters[-1],
                num_heads=num_heads,
                eps=eps,
                user_index=user_index,
            )
    except ValueError as error:
        # Wrong data: from inside a graph every backend reports them alike.
        raise RuntimeError(f"mtlfast: {error}") from None


def _reference_backward(
    grad: Tensor,
    values: Tensor,
    offsets: Tensor,
    num_behaviors: int,
    max_len: int,
    target: Tensor,
    user_index: Tensor | None,
    parameters: list[Tensor],
    num_heads: int,
    eps: float,
) -> list[Tensor]:
    """Gradients of values, target and parameters, recomputed from the inputs."""
    with _autograd_inside_op():
        values, target, *parameters = (
            tensor.detach().requires_grad_() for tensor in (values, target, *parameters)
        )
        out = _reference(
            values, offsets, num_behaviors, max_len, target, user_index, parameters, num_heads, eps
        )
        grads = torch.autograd.grad(out, (values, target, *parameters), grad)
    return [gradient.contiguous() for gradient in grads]


@contextlib.contextmanager
def _autograd_inside_op() -> Iterator[None]:
    """Autograd in the implementation of an op, where the dispatcher has excluded it."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "ADInplaceOrView", "AutogradOther"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def _fake(values: Tensor, offsets: Tensor, num_behaviors: int, *rest: Any) -> Tensor:
    target, parameters = rest[1], rest[3]
    num_tasks = parameters[-1].shape[0]
    return target.new_empty((target.shape[0], num_tasks, num_behaviors, target.shape[1]))


def _fake_backward(grad: Tensor, values: Tensor, *rest: Any) -> list[Tensor]:
    target, parameters = rest[3], rest[5]
    return [tensor.new_empty(tensor.shape) for tensor in (values, target, *parameters)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, offsets, num_behaviors, max_len, target, user_index, parameters, *options = inputs
    ctx.save_for_backward(values, offsets, target, user_index, *parameters)
    ctx.arguments = (num_behaviors, max_len, options)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, offsets, target, user_index, *parameters = ctx.saved_tensors
    num_behaviors, max_len, options = ctx.arguments
    grads = backward_op(
        grad, values, offsets, num_behaviors, max_len, target, user_index, parameters, *options
    )
    return grads[0], None, None, None, grads[1], None, grads[2:], None, None


_NAME = "mtlfast::conditional_interest_reference"
forward_op = torch.library.custom_op(_NAME, _reference, mutates_args=())
backward_op = torch.library.custom_op(f"{_NAME}_backward", _reference_backward, mutates_args=())
forward_op.register_fake(_fake)
backward_op.register_fake(_fake_backward)
forward_op.register_autograd(_backward, setup_context=_setup_context)
