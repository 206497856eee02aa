"""Triton kernels of ``conditional_interest``: DTRN (CIKM 2023) Eq. 3-8, forward and backward.

What each launch computes, in order:

forward
    segments         the sequence of every token
    parameters       weights cast, padded and laid out for the kernels
    self_attention   Q, K, V of every token; then u0 = norm(x + MHSA(x)), once for all tasks
    decoder          the decoder's queries absorbed into its key projection
    encoder          per (task, behavior): u1 = norm(out0 + FFN(out0)), scores, softmax, pooled
    decoder          W_V, W_O, residual, norm, FFN, norm on B * T * M rows

backward, from the saved u0, pooled vectors and softmax statistics
    decoder_backward, encoder_backward, self_attention_backward, decoder_backward (queries),
    parameters       sum of the weight gradients of all programs, in a fixed order

Weight gradients are summed per program in memory of its own and added up in a fixed order at the
end: results have the same bits from run to run, with no atomics. Nothing is read back to the host.
"""

from __future__ import annotations

from typing import Any


def aot_cases(capability: int) -> list[Any]:
    """What ships, for compilation without a GPU (``kernels/aot.py``)."""
    from .shipped import cases

    return cases(capability)


def forward(
    values: Any,
    offsets: Any,
    num_behaviors: int,
    max_len: int,
    target: Any,
    user_index: Any,
    *rest: Any,
) -> tuple[Any, ...]:
    """The launches, with the arguments of ``mtlfast::conditional_interest_triton_forward``."""
    from .launch_forward import forward

    *parameters, num_heads, eps, save_for_backward = rest
    out, *saved = forward(
        values, offsets, num_behaviors, target, user_index, parameters, num_heads, eps
    )
    if not save_for_backward:
        saved = [tensor.new_empty((0, *tensor.shape[1:])) for tensor in saved]
    return out, *saved


def backward(
    grad_out: Any,
    values: Any,
    offsets: Any,
    num_behaviors: int,
    max_len: int,
    target: Any,
    user_index: Any,
    *rest: Any,
) -> tuple[Any, ...]:
    """The launches, with the arguments of ``mtlfast::conditional_interest_triton_backward``."""
    from .launch_backward import backward

    parameters, (num_heads, eps, *saved) = rest[:18], rest[18:]
    return backward(
        grad_out,
        values,
        offsets,
        num_behaviors,
        target,
        user_index,
        parameters,
        num_heads,
        eps,
        saved,
    )
