"""Pieces that several kernels share. Tiles are rows x padded columns; arithmetic is float32.

Widths: DP, DHP, FP are powers of two or multiples of a block, padded with zeros (layout.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)


@triton.jit
def finite(x):
    """``x`` with zeros for what is not finite: 0 * NaN in another row's sum would be NaN.

    Used only where a score or a statistic of the same row carries the NaN on to where it belongs.
    """
    return tl.where(tl.abs(x) <= LARGEST, x, 0.0)


@triton.jit
def layer_norm(u, real, row_valid, D: tl.constexpr, eps):
    """Normalized rows and reciprocal deviations. ``u [R, DP]`` has zeros outside ``real [DP]``."""
    mean = tl.sum(u, axis=1) / D
    centered = tl.where(real[None, :], u - mean[:, None], 0.0)
    variance = tl.sum(centered * centered, axis=1) / D
    # Rows that do not exist are zero, and with eps = 0 their deviation would be infinite.
    rstd = tl.where(row_valid, tl.rsqrt(variance + eps), 0.0)
    return centered * rstd[:, None], rstd


@triton.jit
def layer_norm_backward(gradient, normalized, rstd, real, D: tl.constexpr):
    """From the gradient of the normalized rows to that of their input."""
    mean = tl.sum(gradient, axis=1) / D
    along = tl.sum(gradient * normalized, axis=1) / D
    centered = gradient - mean[:, None] - normalized * along[:, None]
    return tl.where(real[None, :], centered * rstd[:, None], 0.0)


@triton.jit
def relu(x):
    return tl.where(x <= 0.0, 0.0, x)  # NaN is not <= 0 and stays


@triton.jit
def add_bias(y, bias):
    """y + bias, after the sums of ``y``.

    As their first summand, into which the compiler would turn a plain addition, a large bias would
    make every partial sum round at its size.
    """
    return tl.fma(y, tl.full([1, 1], 1.0, tl.float32), bias[None, :])


@triton.jit
def halves(x):
    """The left and the right half of the columns."""
    pairs = tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2])
    return tl.split(tl.permute(pairs, (0, 2, 1)))


@triton.jit
def product(a, b, total, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    """total + a b^T, where None is zero, of at most COLUMNS columns at a time.

    A float32 product holds whole rows of its operands in registers, and wide ones do not fit.
    """
    if a.shape[1] > COLUMNS:
        a_left, a_right = halves(a)
        b_left, b_right = halves(b)
        total = product(a_left, b_left, total, COLUMNS, PRECISION)
        total = product(a_right, b_right, total, COLUMNS, PRECISION)
    elif total is None:
        total = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    else:
        total += tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return total


@triton.jit
def hidden_units(
    x,
    w1,
    b1,
    first,
    BH: tl.constexpr,
    DP: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """relu(x W1^T + b1) for the units [first, first + BH) -> [R, BH] float32, and W1's block."""
    unit = first + tl.arange(0, BH)
    column = tl.arange(0, DP)
    weight = tl.load(w1 + unit[:, None] * DP + column[None, :])
    h = product(x, weight, None, COLUMNS, PRECISION)
    return relu(add_bias(h, tl.load(b1 + unit))), weight


@triton.jit
def feed_forward(
    x,
    w1,
    b1,
    w2,
    b2,
    FP: tl.constexpr,
    BH: tl.constexpr,
    DP: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x + FFN(x) of rows ``x [R, DP]`` (Eq. 5); w1 and w2 are [FP, DP], one row per hidden unit."""
    dtype: tl.constexpr = w1.dtype.element_ty
    column = tl.arange(0, DP)
    operand = x.to(dtype)
    total = tl.zeros_like(x)
    for first in range(0, FP, BH):
        h, _weight1 = hidden_units(operand, w1, b1, first, BH, DP, COLUMNS, PRECISION)
        unit = first + tl.arange(0, BH)
        weight = tl.load(w2 + unit[:, None] * DP + column[None, :])
        total += tl.dot(h.to(dtype), weight, input_precision=PRECISION)
    return x + add_bias(total, tl.load(b2 + column))


@triton.jit
def accumulate(pointers, values):
    """``*pointers += values``: for memory that only this program touches."""
    tl.store(pointers, tl.load(pointers) + values)


@triton.jit
def accumulate_norm(table, gradient, normalized, DP: tl.constexpr):
    """Adds the gradients of one scale and shift: ``table [2, DP]``."""
    column = tl.arange(0, DP)
    accumulate(table + column, tl.sum(gradient * normalized, axis=0))
    accumulate(table + DP + column, tl.sum(gradient, axis=0))


@triton.jit
def hidden_units_backward(
    x,
    gradient,
    w1,
    b1,
    w2,
    first,
    BH: tl.constexpr,
    DP: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Units [first, first + BH) again, [R, BH], the gradient before their ReLU, and W1's block."""
    unit = first + tl.arange(0, BH)
    column = tl.arange(0, DP)
    h, weight1 = hidden_units(x, w1, b1, first, BH, DP, COLUMNS, PRECISION)
    weight2 = tl.load(w2 + unit[:, None] * DP + column[None, :])
    d_h = product(gradient, weight2, None, COLUMNS, PRECISION)
    return h, tl.where(h <= 0.0, 0.0, d_h), weight1


@triton.jit
def feed_forward_backward(
    x,
    gradient,
    w1,
    b1,
    w2,
    FP: tl.constexpr,
    BH: tl.constexpr,
    DP: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of ``x`` from that of x + FFN(x). Hidden units are computed again block by block."""
    dtype: tl.constexpr = w1.dtype.element_ty
    operand = x.to(dtype)
    upstream = gradient.to(dtype)
    d_x = tl.zeros_like(gradient)
    for first in range(0, FP, BH):
        _h, d_h, weight1 = hidden_units_backward(
            operand, upstream, w1, b1, w2, first, BH, DP, COLUMNS, PRECISION
        )
        d_x += tl.dot(d_h.to(dtype), weight1, input_precision=PRECISION)
    return gradient + d_x


@triton.jit
def tile_offsets(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of a contiguous tile, from its first element."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def clamped(pointer, mask, largest):
    """Indices from memory, kept in [0, largest]: wrong data may give wrong numbers, not a crash."""
    index = tl.load(pointer, mask=mask, other=0).to(tl.int64)
    return tl.minimum(tl.maximum(index, 0), largest)
