"""``conditional_interest``: the public function, and what torch must know of its C++ op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .. import reference as _reference
from ..dtypes import activation_and_compute_dtype, cast
from ..jagged import JaggedSequences
from ..kernels.conditional_interest.layout import Layout
from ..kernels.conditional_interest.layout import obstacle as _kernel_obstacle
from ..reference.conditional_interest import (
    ConditionalTransformerWeights,
    check_arguments,
    check_data,
)
from . import _backend, _native, _triton
from ._traced_reference import forward_op as _run_traced_reference

_MAX_D, _MAX_D_F, _MULTIPLE = 256, 1024, 8


def conditional_interest(
    sequences: JaggedSequences,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-5,
    user_index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The interest of every candidate for every pair (task, behavior), in one pass.

    Source: DTRN (CIKM 2023) Eq. 3-8; :func:`mtlfast.reference.conditional_interest` is the
    definition. An empty sequence contributes a zero attention term.

    Floating inputs may be float32, bfloat16, float16 or float64 and promote as torch does. Under
    autocast the output has the autocast dtype, and weights, scale and shift are used in float32.
    Fused backends accumulate in float32 and have first-order gradients for every floating input;
    float64 runs on the reference. So do, on CPU, ``d`` or ``d_f`` that are not multiples of 8 up to
    256 and 1024, and on GPUs a ``d`` above 128, a ``d_f`` above 1024 or very many narrow heads. On
    CPU results and gradients have the same bits for any number of threads, on GPUs in every run;
    float32 products on GPUs are exact unless ``torch.backends.cuda.matmul`` allows TF32 and d is at
    most 64.

    Args:
        sequences: embedded behaviors of ``U`` users, values ``[N, d]``, any strides.
        target: candidate item embeddings ``[B, d]``.
        weights: encoder and decoder weights in ``nn.Linear`` layout; projections ``[d, d]``,
            FFN ``[d_f, d]``, ``[d_f]``, ``[d, d_f]``, ``[d]``.
        scale: effective conditional scales ``[T, M, 4, d]``: hypernetwork scale times norm weight;
            axis 2 is the norm position: after self-attention, encoder FFN, target attention,
            decoder FFN.
        shift: effective conditional shifts ``[T, M, 4, d]``: hypernetwork shift plus norm bias.
        num_heads: attention heads ``h``, a divisor of ``d``.
        eps: added to the variance in every layer norm.
        user_index: ``[B]`` int64 in ``[0, U)``, whose sequences each candidate uses; None means
            candidate ``i`` uses user ``i``, and ``B == U``.
        backend: "auto", "cpu" (C++), "triton" or "reference"; see :func:`mtlfast.explain`.

    Returns:
        ``[B, T, M, d]``.

    Raises:
        ValueError: wrong shapes, dtypes, devices or options; a backend that cannot run here; wrong
            data in ``offsets``, ``max_len`` or ``user_index`` (RuntimeError with the same text
            from inside a compiled graph; on GPUs found where ``mtlfast.checks`` asks for it).
        RuntimeError: a gradient of a gradient is taken on a fused backend.
    """
    check_arguments(sequences, target, weights, scale, shift, num_heads, eps, user_index)
    parameters: tuple[Tensor, ...] = (*weights[0], *weights[1], scale, shift)
    device = target.device.type
    activation, compute = activation_and_compute_dtype(
        (sequences.values, target), parameters, target.device
    )
    chosen, _ = _choose(backend, device, activation, weights, num_heads)
    traced = torch.compiler.is_compiling() or device == "meta"

    if chosen == "reference" and not traced:
        return _reference.conditional_interest(
            sequences,
            target,
            weights,
            scale,
            shift,
            num_heads=num_heads,
            eps=eps,
            user_index=user_index,
        )
    if chosen != "reference" and _backend.checks_enabled() and not traced:
        check_data(sequences, user_index)
    op: Callable[..., Tensor]
    if chosen == "reference":
        _native.refuse_forward_mode("conditional_interest")
        op, io = _run_traced_reference, compute
    elif chosen == "triton":
        op, io = _run_triton, activation
    else:
        op = _run_cpu
        # bfloat16 goes in as it is; for float16 there is no arithmetic on CPUs.
        io = activation if activation == torch.bfloat16 else torch.float32
        compute = torch.float32
    if chosen != "triton":  # whose kernels convert parameters while they lay them out
        parameters = tuple(cast(parameter, compute) for parameter in parameters)
    out = op(
        cast(cast(sequences.values, activation), io),
        sequences.offsets,
        sequences.num_behaviors,
        sequences.max_len,
        cast(cast(target, activation), io),
        user_index,
        list(parameters),
        num_heads,
        float(eps),
    )
    return cast(out, activation)


@_backend.explains("conditional_interest")
def _explain(
    sequences: JaggedSequences,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-5,
    user_index: Tensor | None = None,
    backend: str = "auto",
) -> _backend.Explanation:
    check_arguments(sequences, target, weights, scale, shift, num_heads, eps, user_index)
    parameters: tuple[Tensor, ...] = (*weights[0], *weights[1], scale, shift)
    activation, _ = activation_and_compute_dtype(
        (sequences.values, target), parameters, target.device
    )
    return _backend.Explanation(
        "conditional_interest",
        *_choose(backend, target.device.type, activation, weights, num_heads),
    )


def _choose(
    backend: str,
    device: str,
    activation: torch.dtype,
    weights: ConditionalTransformerWeights,
    num_heads: int,
) -> tuple[str, str]:
    def obstacle(name: str) -> str:
        missing = _backend.missing_obstacle(name, device, ("cpu", "triton"))
        if missing:
            return missing
        if name == "cpu" and not _HAS_CPU_OP:
            return "this build has no C++ op of that name"
        if activation == torch.float64:
            return "float64 is computed by the reference only"
        d_f, d = weights[0][4].shape
        if weights[1][4].shape[0] != d_f:
            return f"encoder and decoder differ in d_f: {d_f} and {weights[1][4].shape[0]}"
        if name == "triton":
            return _kernel_obstacle(int(d), int(d_f), num_heads)
        if d % _MULTIPLE or d > _MAX_D:
            return f"d = {d} is not a multiple of {_MULTIPLE} up to {_MAX_D}"
        if d_f % _MULTIPLE or d_f > _MAX_D_F:
            return f"d_f = {d_f} is not a multiple of {_MULTIPLE} up to {_MAX_D_F}"
        return ""

    return _backend.choose("conditional_interest", backend, device, obstacle)


# ---- the C++ op: schema in csrc/schemas.cpp ----

_HAS_CPU_OP = _extension.cpu_ops_available() and torch._C._dispatch_has_kernel_for_dispatch_key(
    "mtlfast::conditional_interest_forward", "CPU"
)
_NUM_PARAMETERS = 18  # 8 encoder weights, 8 decoder weights, scale, shift


def _run_cpu(*inputs: Any) -> Tensor:
    assert _cpu is not None  # _choose has seen to that
    return _run(_cpu, *inputs)


def _run_triton(*inputs: Any) -> Tensor:
    return _run(_triton_op, *inputs)


def _run(
    op: Callable[..., Any],
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
    # What the backward needs is written only where there will be one.
    save = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (values, target, *parameters)
    )
    return op(
        values,
        offsets,
        num_behaviors,
        max_len,
        target,
        user_index,
        *parameters,
        num_heads,
        eps,
        save,
    )[0]


def _fake_forward(
    values: Tensor,
    offsets: Tensor,
    num_behaviors: int,
    max_len: int,
    target: Tensor,
    user_index: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale, save = rest[_NUM_PARAMETERS - 2], rest[-1]
    num_candidates, d = target.shape
    shape = (num_candidates, scale.shape[0], num_behaviors, d)

    def saved(*size: int) -> Tensor:
        return values.new_empty(size if save else (0, *size[1:]), dtype=torch.float32)

    rows = values.shape[0]
    return values.new_empty(shape), saved(rows, d), saved(rows), saved(*shape)


def _fake_backward(grad_out: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    target, parameters = rest[3], rest[5 : 5 + _NUM_PARAMETERS]
    return tuple(tensor.new_empty(tensor.shape) for tensor in (values, target, *parameters))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, offsets, num_behaviors, max_len, target, user_index, *rest = inputs
    *parameters, num_heads, eps, save = rest
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(values, offsets, target, user_index, *parameters, *statistics)
    ctx.options = (num_behaviors, max_len, num_heads, eps, save)


def _backward(
    op: Callable[..., Any], ctx: Any, grad_out: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    num_behaviors, max_len, num_heads, eps, save = ctx.options
    if grad_out is None:
        return (None,) * (6 + _NUM_PARAMETERS + 3)
    if not save:
        raise RuntimeError("conditional_interest_forward: no backward with save_for_backward=False")
    values, offsets, target, user_index, *rest = ctx.saved_tensors
    parameters, statistics = rest[:_NUM_PARAMETERS], rest[_NUM_PARAMETERS:]
    grad_values, grad_target, *grad_parameters = op(
        grad_out,
        values,
        offsets,
        num_behaviors,
        max_len,
        target,
        user_index,
        *parameters,
        num_heads,
        eps,
        *statistics,
    )
    return (grad_values, None, None, None, grad_target, None, *grad_parameters, None, None, None)


_cpu = (
    _native.differentiable(
        "conditional_interest",
        fake_forward=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_backward,
    )
    if _HAS_CPU_OP
    else None
)


# ---- the Triton op ----

_WEIGHTS = ", ".join(
    f"Tensor {side}_{name}"
    for side in ("enc", "dec")
    for name in ("q", "k", "v", "o", "w1", "b1", "w2", "b2")
)
_INPUTS = (
    "Tensor values, Tensor offsets, int num_behaviors, SymInt max_len, Tensor target, "
    f"Tensor? user_index, {_WEIGHTS}, Tensor scale, Tensor shift, int num_heads, float eps"
)
_SAVED = ("normalized", "rstd", "pooled", "statistics")
_FORWARD_SCHEMA = f"({_INPUTS}, bool save_for_backward) -> ({', '.join(['Tensor'] * 5)})"
_BACKWARD_SCHEMA = (
    f"(Tensor grad_out, {_INPUTS}, {', '.join(f'Tensor {name}' for name in _SAVED)}) "
    f"-> ({', '.join(['Tensor'] * (2 + _NUM_PARAMETERS))})"
)


def _fake_triton_forward(
    values: Tensor,
    offsets: Tensor,
    num_behaviors: int,
    max_len: int,
    target: Tensor,
    user_index: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *parameters, num_heads, _, save = rest
    num_candidates, d = target.shape
    num_tasks = parameters[-1].shape[0]
    layout = Layout(int(d), int(parameters[4].shape[0]), num_heads)
    rows = (num_candidates, num_tasks, num_behaviors)

    def saved(*size: int, dtype: torch.dtype = values.dtype) -> Tensor:
        return values.new_empty(size if save else (0, *size[1:]), dtype=dtype)

    return (
        values.new_empty((*rows, d)),
        saved(values.shape[0], layout.dp),
        saved(values.shape[0], dtype=torch.float32),
        saved(*rows, num_heads, layout.dp),
        saved(*rows, num_heads, 2, dtype=torch.float32),
    )


_triton_op = _native.differentiable(
    _triton.define("conditional_interest", _FORWARD_SCHEMA, _BACKWARD_SCHEMA),
    fake_forward=_fake_triton_forward,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
