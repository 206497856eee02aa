"""The definition of ``conditional_layer_norm`` in plain PyTorch.

Source: DTRN (CIKM 2023), Eq. 6: layer norm with a scale and shift for each pair (task, behavior).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from ..dtypes import activation_and_compute_dtype, require_floating
from ..errors import bad, describe, require_tensor, shape_text


def conditional_layer_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm of ``x + residual`` with a scale and a shift for every row.

    Source: DTRN (CIKM 2023) Eq. 6. Over the last axis, with the biased variance::

        u = x + residual
        n = (u - mean(u)) / sqrt(var(u) + eps)
        y = scale * n + shift

    Leading dimensions broadcast as in NumPy; the last one, ``d``, is the same for all.
    Differentiable any number of times. bfloat16 and float16 are computed in float32 and rounded
    once, at the end.

    Args:
        x: ``[..., d]``.
        scale: ``[..., d]``, for example ``[d]``, ``[T, M, d]`` or one row for each row of ``x``.
        shift: ``[..., d]``.
        residual: ``[..., d]``, added to ``x`` first; None adds nothing.
        eps: added to the variance.

    Returns:
        ``[..., d]``, contiguous, in the promoted dtype of all inputs; under autocast, in the
        autocast dtype.

    Raises:
        ValueError: wrong shapes, dtypes, devices or options.
    """
    check_arguments(x, scale, shift, residual, eps)
    dtype = output_dtype(x, scale, shift, residual)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    u = x.to(compute)
    if residual is not None:
        u = u + residual.to(compute)
    normalized = layer_norm(u, (u.shape[-1],), eps=eps)
    return (scale.to(compute) * normalized + shift.to(compute)).to(dtype).contiguous()


def output_dtype(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None) -> torch.dtype:
    """The promoted dtype of all inputs, or the autocast dtype."""
    activations = (x,) if residual is None else (x, residual)
    return activation_and_compute_dtype(activations, (scale, shift), x.device)[0]


def check_arguments(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, eps: float
) -> None:
    """Raises ValueError where a shape, dtype, device or option is wrong."""
    require_tensor("x", x)
    require_floating("x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise bad("x", "shape [..., d] with d >= 1", f"shape {shape_text(x)}")
    shape = tuple(x.shape)
    for name, tensor in (("residual", residual), ("scale", scale), ("shift", shift)):
        if name == "residual" and tensor is None:
            continue
        require_tensor(name, tensor)
        assert tensor is not None
        require_floating(name, tensor)
        if tensor.device != x.device:
            raise bad(name, f"device {x.device} (that of x)", describe(tensor))
        if tensor.dim() == 0 or tensor.shape[-1] != x.shape[-1]:
            raise bad(name, f"shape [..., d = {x.shape[-1]}]", f"shape {shape_text(tensor)}")
        joint = broadcast(shape, tuple(tensor.shape))
        if joint is None:
            others = "x" if name == "residual" else "x and residual" if name == "scale" else "scale"
            sizes = ", ".join(str(size) for size in shape)
            raise bad(
                name,
                f"a shape that broadcasts with [{sizes}] ({others})",
                f"shape {shape_text(tensor)}",
            )
        shape = joint
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise bad("eps", "a float", type(eps).__name__)
    if not 0 <= eps < math.inf:
        raise bad("eps", "a finite number of at least 0", eps)


_INT = frozenset((int,))  # a graph's shapes have other sizes, to be compared with care


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that two shapes broadcast to as in NumPy, or None."""
    traced = torch.compiler.is_compiling()
    # The usual case, and most of what a call with few rows would take without it.
    if not traced and _INT.issuperset(map(type, a + b)) and a[max(len(a) - len(b), 0) :] == b:
        return a
    rank = max(len(a), len(b))
    shape = []
    for m, n in zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True):
        if not traced and type(m) is int and type(n) is int:
            if m != n and m != 1 and n != 1:
                return None
            shape.append(n if m == 1 else m)
        elif _holds(m == 1, otherwise=False):
            shape.append(n)
        elif _holds(n == 1, otherwise=False) or _holds(m == n, otherwise=True):
            shape.append(m)
        else:
            return None
    return tuple(shape)


def _holds(condition: bool | torch.SymBool, *, otherwise: bool) -> bool:
    """``condition``, or ``otherwise`` in a graph that cannot know because it depends on data."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true

    return guard_or_true(condition) if otherwise else guard_or_false(condition)
