"""``conditional_layer_norm``: the public function, and what torch must know of its C++ op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .. import reference as _reference
from ..reference.conditional_layer_norm import broadcast, check_arguments, output_dtype
from . import _backend, _native, _triton


def conditional_layer_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Layer norm of ``x + residual`` with a scale and a shift for every row, in one pass.

    Source: DTRN (CIKM 2023) Eq. 6; :func:`mtlfast.reference.conditional_layer_norm` is the
    definition. Over the last axis, with the biased variance::

        u = x + residual
        n = (u - mean(u)) / sqrt(var(u) + eps)
        y = scale * n + shift

    Leading dimensions broadcast as in NumPy and the last one, ``d``, is the same for all; any ``d``
    runs fused on CPU, on GPUs up to 4096 (Triton) or 1024 (CUDA). On CPU rows of ``u`` that
    broadcast against scale and shift (``x [B, 1, M, d]`` with ``scale [T, M, d]``) are normalised
    once. Strides may be anything; inputs are copied only where the stride of the last dimension is
    not 1.

    Floating inputs may be float32, bfloat16, float16 or float64 and promote as torch does; float64
    runs on the reference. Under autocast the output has the autocast dtype, while scale, shift and
    all arithmetic are float32. Fused backends have first-order gradients for every input. On CPU,
    results and gradients have the same bits for any number of threads, on GPUs in every run.

    Args:
        x: ``[..., d]``.
        scale: ``[..., d]``, for example ``[d]``, ``[T, M, d]`` or one row for each row of ``x``.
        shift: ``[..., d]``.
        residual: ``[..., d]``, added to ``x`` first; None adds nothing.
        eps: added to the variance.
        backend: "auto", "cpu" (C++), "triton", "cuda" (C++) or "reference"; see
            :func:`mtlfast.explain`.

    Returns:
        ``[..., d]``, contiguous.

    Raises:
        ValueError: wrong shapes, dtypes, devices or options; a backend that cannot run here.
        RuntimeError: a gradient of a gradient is taken on a fused backend.
    """
    check_arguments(x, scale, shift, residual, eps)
    dtype = output_dtype(x, scale, shift, residual)
    tensors = (x, scale, shift) if residual is None else (x, scale, shift, residual)
    chosen, _ = _choose(backend, x.device.type, tensors)
    if chosen == "reference":
        return _reference.conditional_layer_norm(x, scale, shift, residual=residual, eps=eps)
    # Statistics are written only where there will be a backward.
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    run = _run_triton if chosen == "triton" else _run_cpp
    assert run is not None  # _choose has seen to that
    out, _, _ = run(x, scale, shift, residual, float(eps), DTYPES.index(dtype), save)
    return out


@_backend.explains("conditional_layer_norm")
def _explain(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> _backend.Explanation:
    check_arguments(x, scale, shift, residual, eps)
    tensors = (x, scale, shift) if residual is None else (x, scale, shift, residual)
    return _backend.Explanation("conditional_layer_norm", *_choose(backend, x.device.type, tensors))


def _choose(backend: str, device: str, tensors: tuple[Tensor, ...]) -> tuple[str, str]:
    def obstacle(name: str) -> str:
        missing = _backend.missing_obstacle(name, device, ("cpu", "triton", "cuda"))
        if missing:
            return missing
        if name not in _BACKENDS:
            return f"this build has no {name.upper()} op of that name"
        if any(tensor.dtype == torch.float64 for tensor in tensors):
            return "float64 is computed by the reference only"
        if name in GPU_MAX_D and tensors[0].shape[-1] > GPU_MAX_D[name]:
            return f"d = {tensors[0].shape[-1]} is above {GPU_MAX_D[name]}"
        return ""

    return _backend.choose("conditional_layer_norm", backend, device, obstacle)


# ---- the ops: C++ (schema in csrc/schemas.cpp) and Triton ----

# A row is held in the registers of one block, or of one warp.
GPU_MAX_D = {"triton": 4096, "cuda": 1024}

# The dtypes of a result, in the order in which the ops number them (csrc/schemas.cpp says why they
# take a number).
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_FORWARD_SCHEMA = (
    "(Tensor x, Tensor scale, Tensor shift, Tensor? residual, float eps, int out_kind, "
    "bool save_for_backward) -> (Tensor, Tensor, Tensor)"
)
_BACKWARD_SCHEMA = (
    "(Tensor grad_out, Tensor x, Tensor scale, Tensor shift, Tensor? residual, "
    "Tensor mean, Tensor rstd, bool need_x, bool need_scale, bool need_shift, bool need_residual) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


# Those that have the op: "triton", and "cpu" and "cuda" as far as their libraries are loaded.
_LOADED = {"cpu": _extension.cpu_ops_available(), "cuda": _extension.cuda_ops_available()}
_BACKENDS = ["triton"] + [
    name
    for name, loaded in _LOADED.items()
    if loaded
    and torch._C._dispatch_has_kernel_for_dispatch_key(
        "mtlfast::conditional_layer_norm_forward", name.upper()
    )
]


def _leading(a: Tensor, b: Tensor) -> tuple[int, ...]:
    shape = broadcast(tuple(a.shape[:-1]), tuple(b.shape[:-1]))
    assert shape is not None  # check_arguments has seen to that
    return shape


def _fake_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    eps: float,
    out_kind: int,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    u = x if residual is None else x.new_empty((*_leading(x, residual), x.shape[-1]))
    saved = tuple(u.shape[:-1]) if save_for_backward else (0,)
    for table in (scale, shift):
        u = u.new_empty((*_leading(u, table), x.shape[-1]), dtype=DTYPES[out_kind])
    mean, rstd = (x.new_empty(saved, dtype=torch.float32) for _ in range(2))
    return u, mean, rstd


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *needed: bool,
) -> tuple[Tensor, ...]:
    return tuple(
        x.new_empty((0,)) if tensor is None else tensor.new_empty(tensor.shape if need else (0,))
        for tensor, need in zip((x, scale, shift, residual), needed, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scale, shift, residual, _, _, save = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, scale, shift, residual, mean, rstd)
    ctx.save = save


def _backward(
    op: Callable[..., Any], ctx: Any, grad_out: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 7
    if not ctx.save:
        raise RuntimeError(
            "conditional_layer_norm_forward: no backward with save_for_backward=False"
        )
    x, scale, shift, residual, mean, rstd = ctx.saved_tensors
    needs_x, needs_scale, needs_shift, needs_residual = needed = ctx.needs_input_grad[:4]
    # Of one shape, x and the residual have one gradient: that of their sum.
    shared = residual is not None and (residual.shape, residual.dtype) == (x.shape, x.dtype)
    # The gradient of a shift with a row for every row of the output is that of the output.
    same = needs_shift and (shift.shape, shift.dtype) == (grad_out.shape, grad_out.dtype)
    grads = op(
        grad_out,
        x,
        scale,
        shift,
        residual,
        mean,
        rstd,
        needs_x or (shared and needs_residual),
        needs_scale,
        needs_shift and not same,
        needs_residual and not shared,
    )
    if shared:
        grads = (*grads[:3], grads[0])
    if same:
        grads = (*grads[:2], grad_out, grads[3])
    found = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    return (*found, None, None, None)


def _differentiable(op: str) -> Callable[..., Any]:
    return _native.differentiable(
        op,
        fake_forward=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_backward,
    )


_run_triton = _differentiable(
    _triton.define("conditional_layer_norm", _FORWARD_SCHEMA, _BACKWARD_SCHEMA)
)
_run_cpp = _differentiable("conditional_layer_norm") if "cpu" in _BACKENDS else None
