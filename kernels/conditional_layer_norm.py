"""``conditional_layer_norm`` in Triton: forward and backward.

Source: DTRN (CIKM 2023) Eq. 6. A program normalises a tile of rows held in registers, in float32;
nothing is read twice from memory but rows that several tasks share, which the caches keep. The
gradients of scale and shift are summed by program and then over programs, in a fixed order: results
have the same bits in every run.

``forward`` and ``backward`` launch on tensors of any strides; arguments are those of the C++ ops.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _loops
from ._device import on_device
from .aot import AotCase

MAX_D = 4096  # a row is held in registers

_FORWARD_TILE, _BACKWARD_TILE = 2048, 1024  # elements of a tile
_FEW = 8  # rows of one table row that are added up one by one instead of in a tile
# ptxas, left to itself, spills a few bytes in order to use 64 registers (sm_100). A product that is
# rounded in a mean and not where the mean is taken from it leaves its rounding error, times rstd.
_BACKWARD_OPTIONS = {"maxnreg": 128, "enable_fp_fusion": False}
_PARTIALS = {"PARTS": 32, "COLS": 64}  # the tile in which partial sums are added up
_PROGRAMS = 1024  # programs that sum gradients of scale and shift, about: fixed, not per device

# Sizes change with every batch. Were they specialised, new ones would mean new compilations.
_SIZES = {"rows", "outer", "inner", "chunk", "chunks", "elements", "n1", "n2", "n3", "eps"}
_SIZES |= {f"{operand}{dim}" for operand in "xrabsg" for dim in range(_loops.MAX_DIMS)}


def _jit(function: Any) -> Any:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(function, do_not_specialize=[n for n in names if n in _SIZES])


@triton.jit
def _indices(row, n1, n2, n3, DIMS: tl.constexpr):
    """The index of a row in each of four dimensions; the missing ones stand in front."""
    i0 = row * 0
    i1 = i0
    i2 = i0
    i3 = row
    if DIMS >= 2:
        i2 = row // n3
        i3 = row - i2 * n3
    if DIMS >= 3:
        i1 = i2 // n2
        i2 = i2 - i1 * n2
    if DIMS >= 4:
        i0 = i1 // n1
        i1 = i1 - i0 * n1
    return i0.to(tl.int64), i1.to(tl.int64), i2.to(tl.int64), i3.to(tl.int64)


@triton.jit
def _offset(i0, i1, i2, i3, s0, s1, s2, s3, DIMS: tl.constexpr, ALIGN: tl.constexpr):
    """Where rows start, in elements."""
    offset = i3 * s3
    if DIMS >= 2:
        offset += i2 * s2
    if DIMS >= 3:
        offset += i1 * s1
    if DIMS >= 4:
        offset += i0 * s0
    return tl.multiple_of(offset, ALIGN)


@triton.jit
def _tile(pointer, offset, cols, mask):
    """Rows of a tensor in float32, 0 outside the mask. [ROWS, BLOCK_D]"""
    return tl.load(pointer + offset[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _add_rows(tile, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The sum of all rows, in two levels: rounding errors stay those of a short sum."""
    groups: tl.constexpr = 8 if ROWS >= 8 else ROWS
    return tl.sum(tl.sum(tl.reshape(tile, [groups, ROWS // groups, BLOCK_D]), 1), 0)


@_jit
def _forward(
    x,  # [..., d]
    residual,  # [..., d] or None
    scale,  # [..., d]
    shift,  # [..., d]
    out,  # [rows, d], contiguous
    mean,  # one per row of x + residual, or None
    rstd,
    rows,
    n1,
    n2,
    n3,
    x0,
    x1,
    x2,
    x3,
    r0,
    r1,
    r2,
    r3,
    a0,
    a1,
    a2,
    a3,
    b0,
    b1,
    b2,
    b3,
    s0,
    s1,
    s2,
    s3,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    row = start * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    inside = row < rows
    mask = inside[:, None] & (cols < D)[None, :]
    i0, i1, i2, i3 = _indices(row, n1, n2, n3, DIMS)

    u = _tile(x, _offset(i0, i1, i2, i3, x0, x1, x2, x3, DIMS, ALIGN), cols, mask)
    if residual is not None:
        u += _tile(residual, _offset(i0, i1, i2, i3, r0, r1, r2, r3, DIMS, ALIGN), cols, mask)
    center = tl.sum(u, 1) / D
    u = tl.where(mask, u - center[:, None], 0.0)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(u * u, 1) / D + eps))
    a = _tile(scale, _offset(i0, i1, i2, i3, a0, a1, a2, a3, DIMS, ALIGN), cols, mask)
    b = _tile(shift, _offset(i0, i1, i2, i3, b0, b1, b2, b3, DIMS, ALIGN), cols, mask)
    y = a * (u * inverse[:, None]) + b
    target = tl.multiple_of(row.to(tl.int64) * D, ALIGN)
    tl.store(out + target[:, None] + cols[None, :], y.to(out.dtype.element_ty), mask=mask)
    if mean is not None:
        # Rows that share their x + residual all write the same numbers.
        at = _offset(i0, i1, i2, i3, s0, s1, s2, s3, DIMS, 1)
        tl.store(mean + at, center, mask=inside)
        tl.store(rstd + at, inverse, mask=inside)


@_jit
def _backward_rows(
    grad,  # [..., d]
    x,
    residual,
    scale,
    mean,
    rstd,
    grad_u,  # [outer, d]: gradient of x + residual
    outer,
    inner,
    n1,
    n2,
    n3,
    x0,
    x1,
    x2,
    x3,
    r0,
    r1,
    r2,
    r3,
    a0,
    a1,
    a2,
    a3,
    s0,
    s1,
    s2,
    s3,
    g0,
    g1,
    g2,
    g3,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Rows (i, k): i over what x + residual varies along, k over the rest, which is summed."""
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    row = start * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    inside = row < outer
    mask = inside[:, None] & (cols < D)[None, :]
    first = tl.where(inside, row, 0) * inner

    i0, i1, i2, i3 = _indices(first, n1, n2, n3, DIMS)
    at = _offset(i0, i1, i2, i3, s0, s1, s2, s3, DIMS, 1)
    u = _tile(x, _offset(i0, i1, i2, i3, x0, x1, x2, x3, DIMS, ALIGN), cols, mask)
    if residual is not None:
        u += _tile(residual, _offset(i0, i1, i2, i3, r0, r1, r2, r3, DIMS, ALIGN), cols, mask)
    inverse = tl.load(rstd + at, mask=inside, other=0.0)
    u = (u - tl.load(mean + at, mask=inside, other=0.0)[:, None]) * inverse[:, None]
    u = tl.where(mask, u, 0.0)

    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for k in range(inner):
        i0, i1, i2, i3 = _indices(first + k, n1, n2, n3, DIMS)
        g = _tile(grad, _offset(i0, i1, i2, i3, g0, g1, g2, g3, DIMS, ALIGN), cols, mask)
        a = _tile(scale, _offset(i0, i1, i2, i3, a0, a1, a2, a3, DIMS, ALIGN), cols, mask)
        total += g * a
    along = tl.sum(total * u, 1) / D
    total = (total - (tl.sum(total, 1) / D)[:, None] - u * along[:, None]) * inverse[:, None]
    target = tl.multiple_of(at * D, ALIGN)
    tl.store(grad_u + target[:, None] + cols[None, :], total.to(grad_u.dtype.element_ty), mask=mask)


@_jit
def _backward_tables(
    grad,
    x,
    residual,
    scale,
    mean,
    rstd,
    grad_u,  # written where given: every row of the result has its own x + residual
    grad_scale,  # [chunks, outer, d] or None
    grad_shift,
    outer,
    inner,
    chunk,
    chunks,
    n1,
    n2,
    n3,
    x0,
    x1,
    x2,
    x3,
    r0,
    r1,
    r2,
    r3,
    a0,
    a1,
    a2,
    a3,
    s0,
    s1,
    s2,
    s3,
    g0,
    g1,
    g2,
    g3,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    MANY: tl.constexpr,
    DIMS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Rows (q, r): q over what the table varies along, r over the rest, which is summed.

    A tile is ROWS rows of one q, or with MANY one row of each of ROWS q. A program takes `chunk`
    of the r.
    """
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    block = pid // chunks
    part = pid - block * chunks
    begin = part * chunk
    end = tl.minimum(begin + chunk, inner)
    lanes = tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    sum_scale = tl.zeros([ROWS, BLOCK_D], tl.float32)
    sum_shift = tl.zeros([ROWS, BLOCK_D], tl.float32)
    step: tl.constexpr = 1 if MANY else ROWS
    for r in range(begin, end, step):
        if MANY:
            q = block * ROWS + lanes
            inside = q < outer
            row = tl.where(inside, q, 0) * inner + r
        else:
            inside = r + lanes < end
            row = block * inner + tl.where(inside, r + lanes, 0)
        mask = inside[:, None] & (cols < D)[None, :]
        i0, i1, i2, i3 = _indices(row, n1, n2, n3, DIMS)
        g = _tile(grad, _offset(i0, i1, i2, i3, g0, g1, g2, g3, DIMS, ALIGN), cols, mask)
        sum_shift += g
        if grad_scale is not None or grad_u is not None:
            at = _offset(i0, i1, i2, i3, s0, s1, s2, s3, DIMS, 1)
            u = _tile(x, _offset(i0, i1, i2, i3, x0, x1, x2, x3, DIMS, ALIGN), cols, mask)
            if residual is not None:
                u += _tile(
                    residual, _offset(i0, i1, i2, i3, r0, r1, r2, r3, DIMS, ALIGN), cols, mask
                )
            inverse = tl.load(rstd + at, mask=inside, other=0.0)
            u = (u - tl.load(mean + at, mask=inside, other=0.0)[:, None]) * inverse[:, None]
            u = tl.where(mask, u, 0.0)
            sum_scale += g * u
            if grad_u is not None:
                a = _tile(scale, _offset(i0, i1, i2, i3, a0, a1, a2, a3, DIMS, ALIGN), cols, mask)
                g = g * a
                along = tl.sum(g * u, 1) / D
                g = (g - (tl.sum(g, 1) / D)[:, None] - u * along[:, None]) * inverse[:, None]
                target = tl.multiple_of(at * D, ALIGN)
                tl.store(
                    grad_u + target[:, None] + cols[None, :],
                    g.to(grad_u.dtype.element_ty),
                    mask=mask,
                )

    base = part.to(tl.int64) * outer
    if MANY:
        q = block * ROWS + lanes
        place = (base + q)[:, None] * D + cols[None, :]
        valid = (q < outer)[:, None] & (cols < D)[None, :]
        if grad_scale is not None:
            tl.store(grad_scale + place, sum_scale.to(grad_scale.dtype.element_ty), mask=valid)
        if grad_shift is not None:
            tl.store(grad_shift + place, sum_shift.to(grad_shift.dtype.element_ty), mask=valid)
    else:
        place = (base + block) * D + cols
        valid = cols < D
        if grad_scale is not None:
            total = _add_rows(sum_scale, ROWS, BLOCK_D).to(grad_scale.dtype.element_ty)
            tl.store(grad_scale + place, total, mask=valid)
        if grad_shift is not None:
            total = _add_rows(sum_shift, ROWS, BLOCK_D).to(grad_shift.dtype.element_ty)
            tl.store(grad_shift + place, total, mask=valid)


@_jit
def _add_partials(
    partial_scale,  # [chunks, elements] or None
    partial_shift,
    grad_scale,  # [elements]
    grad_shift,
    chunks,
    elements,
    PARTS: tl.constexpr,
    COLS: tl.constexpr,
):
    col = tl.program_id(0).to(tl.int64) * COLS + tl.arange(0, COLS)
    part = tl.arange(0, PARTS)
    sum_scale = tl.zeros([PARTS, COLS], tl.float32)
    sum_shift = tl.zeros([PARTS, COLS], tl.float32)
    for first in range(0, chunks, PARTS):
        mask = (first + part < chunks)[:, None] & (col < elements)[None, :]
        place = (first + part).to(tl.int64)[:, None] * elements + col[None, :]
        if partial_scale is not None:
            sum_scale += tl.load(partial_scale + place, mask=mask, other=0.0)
        if partial_shift is not None:
            sum_shift += tl.load(partial_shift + place, mask=mask, other=0.0)
    valid = col < elements
    if partial_scale is not None:
        total = _add_rows(sum_scale, PARTS, COLS).to(grad_scale.dtype.element_ty)
        tl.store(grad_scale + col, total, mask=valid)
    if partial_shift is not None:
        total = _add_rows(sum_shift, PARTS, COLS).to(grad_shift.dtype.element_ty)
        tl.store(grad_shift + col, total, mask=valid)


# ---- launches ----

# The dtypes of a result, in the order in which the op numbers them.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    eps: float,
    out_kind: int,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out ``[..., d]`` in ``DTYPES[out_kind]``; mean, rstd ``[...]`` of rows of x + residual."""
    d = x.shape[-1]
    u_shape = _loops.broadcast(x.shape[:-1], () if residual is None else residual.shape[:-1])
    shape = _loops.broadcast(u_shape, scale.shape[:-1], shift.shape[:-1])
    out = x.new_empty((*shape, d), dtype=DTYPES[out_kind])
    saved = u_shape if save_for_backward else (0,)
    mean = x.new_empty(saved, dtype=torch.float32)
    rstd = x.new_empty(saved, dtype=torch.float32)
    if out.numel() == 0:
        return out, mean.zero_(), rstd.zero_()

    tensors = _rows(x, residual, scale, shift)
    rank = len(shape)
    operands = [_strides(t, rank) for t in tensors]
    operands.append(_loops.contiguous_strides(u_shape, rank))
    dims = _loops.merge(_loops.loops(shape, operands))
    if len(dims) > _loops.MAX_DIMS:
        return _forward_expanded(
            x, scale, shift, residual, eps, out_kind, shape, u_shape, save_for_backward
        )
    sizes, strides = _loops.arguments(dims, len(operands))
    rows = _loops.count(dims)
    tile = tile_of(d, _FORWARD_TILE)
    with on_device(x):
        _forward[(triton.cdiv(rows, tile["ROWS"]),)](
            *tensors,
            out,
            mean if save_for_backward else None,
            rstd if save_for_backward else None,
            rows,
            *sizes,
            *(step for operand in strides for step in operand),
            eps,
            D=d,
            DIMS=max(1, len(dims)),
            ALIGN=_align(tensors, strides[:-1], d),
            WIDE=rows >= 1 << 30,
            **tile,
        )
    return out, mean, rstd


def backward(
    grad_out: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    need_x: bool,
    need_scale: bool,
    need_shift: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, scale, shift and residual; size 0 where not needed."""
    need_residual = need_residual and residual is not None
    needed = (need_x, need_scale, need_shift, need_residual)
    inputs = (x, scale, shift, x if residual is None else residual)
    if grad_out.numel() == 0 or not any(needed):
        zeros = (
            t.new_zeros(t.shape) if need else t.new_empty((0,))
            for t, need in zip(inputs, needed, strict=True)
        )
        return tuple(zeros)  # type: ignore[return-value]
    shape, u_shape, d = tuple(grad_out.shape[:-1]), tuple(mean.shape), x.shape[-1]
    rank = len(shape)
    x_, residual_, scale_, grad_ = _rows(x, residual, scale, grad_out)
    u_strides = _loops.contiguous_strides(u_shape, rank)
    table_strides = [_loops.contiguous_strides(t.shape[:-1], rank) for t in (scale, shift)]
    operands = [_strides(x_, rank), _strides(residual_, rank), _strides(scale_, rank), u_strides]
    operands.append(_strides(grad_, rank))
    dims = _loops.loops(shape, [*operands, *table_strides])
    if len(_loops.merge(dims)) > _loops.MAX_DIMS:
        return _backward_expanded(grad_out, (x, scale, shift, residual), mean, rstd, needed)
    launch = _Launch(x, residual_, scale_, grad_, mean, rstd, x_, len(operands))

    grad_u = None
    if need_x or need_residual:
        # Written once in its final dtype where nothing is left to sum or to convert.
        receivers = [t for t, need in ((x, need_x), (residual, need_residual)) if need]
        kinds = {(tuple(t.shape[:-1]), t.dtype) for t in receivers if t is not None}
        direct = kinds == {(u_shape, receivers[0].dtype)}  # type: ignore[union-attr]
        kind = receivers[0].dtype if direct else torch.float32  # type: ignore[union-attr]
        grad_u = x.new_empty((*u_shape, d), dtype=kind)
    u_written = grad_u is None
    shared = any(dim[1][3] == 0 for dim in dims)
    tables = [(scale, need_scale, 5), (shift, need_shift, 6)]
    grads: list[Tensor] = [t.new_empty(t.shape if need else (0,)) for t, need, _ in tables]
    together = need_scale and need_shift and table_strides[0] == table_strides[1]
    groups = [(0, 1)] if together else [(i,) for i in (0, 1) if tables[i][1]]
    for group in groups:
        position = tables[group[0]][2]
        kept, summed = _loops.split(dims, lambda dim, at=position: dim[1][at] != 0)  # type: ignore[misc]
        here = None if u_written or shared else grad_u
        u_written = u_written or not shared
        launch.tables(
            kept,
            summed,
            here,
            grads[0] if 0 in group else None,
            grads[1] if 1 in group else None,
        )
    if not u_written:
        assert grad_u is not None
        launch.rows(*_loops.split(dims, lambda dim: dim[1][3] != 0), grad_u)

    def of_input(tensor: Tensor, need: bool) -> Tensor:
        if not need:
            return tensor.new_empty((0,))
        assert grad_u is not None
        found = grad_u.sum_to_size(tensor.shape) if grad_u.shape != tensor.shape else grad_u
        return found.to(tensor.dtype)

    grad_x = of_input(x, need_x)
    grad_residual = of_input(inputs[3], need_residual)
    if need_x and need_residual and grad_residual.data_ptr() == grad_x.data_ptr():
        grad_residual = grad_residual.clone()
    return grad_x, grads[0], grads[1], grad_residual


def _forward_expanded(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    eps: float,
    out_kind: int,
    shape: tuple[int, ...],
    u_shape: tuple[int, ...],
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Broadcasts too tangled for four loops: every operand is written out first."""
    x, scale, shift, residual = _expanded((x, scale, shift, residual), shape)
    out, *saved = forward(x, scale, shift, residual, eps, out_kind, save_for_backward)
    if save_for_backward:
        extra = len(shape) - len(u_shape)
        first = tuple(
            slice(None) if i >= extra and u_shape[i - extra] == size else slice(1)
            for i, size in enumerate(shape)
        )
        saved = [t[first].reshape(u_shape).contiguous() for t in saved]
    return out, saved[0], saved[1]


def _backward_expanded(
    grad_out: Tensor,
    inputs: tuple[Tensor | None, ...],
    mean: Tensor,
    rstd: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = tuple(grad_out.shape[:-1])
    full = _expanded([None if t is None else t.float() for t in inputs], shape)
    statistics = (t.expand(shape).contiguous() for t in (mean, rstd))
    found = backward(grad_out, *full, *statistics, *needed)  # type: ignore[arg-type]
    grads = (
        grad.sum_to_size(of.shape).to(of.dtype) if need and of is not None else grad
        for grad, of, need in zip(found, inputs, needed, strict=True)
    )
    return tuple(grads)  # type: ignore[return-value]


def _expanded(tensors: Any, shape: tuple[int, ...]) -> list[Any]:
    return [None if t is None else t.expand(*shape, t.shape[-1]).contiguous() for t in tensors]


class _Launch:
    """What the launches of one backward have in common."""

    def __init__(
        self,
        like: Tensor,
        residual: Tensor | None,
        scale: Tensor,
        grad: Tensor,
        mean: Tensor,
        rstd: Tensor,
        x: Tensor,
        num_operands: int,
    ) -> None:
        self.like, self.d = like, x.shape[-1]
        self.pointers = (grad, x, residual, scale, mean, rstd)
        self.num_operands = num_operands
        self.tile = tile_of(self.d, _BACKWARD_TILE)

    def _arguments(self, dims: list[_loops.Dim]) -> tuple[list[int], dict[str, Any]]:
        sizes, strides = _loops.arguments(dims, self.num_operands)
        rows_of = [row for i, row in enumerate(strides) if i != 3]
        options = {
            **_BACKWARD_OPTIONS,
            "D": self.d,
            "DIMS": max(1, len(dims)),
            "ALIGN": _align(self.pointers[:4], rows_of, self.d),
            "WIDE": _loops.count(dims) >= 1 << 30,
            **self.tile,
        }
        return [*sizes, *(step for operand in strides for step in operand)], options

    def rows(self, outer: list[_loops.Dim], inner: list[_loops.Dim], grad_u: Tensor) -> None:
        many, few = _loops.count(outer), _loops.count(inner)
        integers, options = self._arguments(outer + inner)
        with on_device(self.like):
            _backward_rows[(triton.cdiv(many, self.tile["ROWS"]),)](
                *self.pointers, grad_u, many, few, *integers, **options
            )

    def tables(
        self,
        outer: list[_loops.Dim],
        inner: list[_loops.Dim],
        grad_u: Tensor | None,
        grad_scale: Tensor | None,
        grad_shift: Tensor | None,
    ) -> None:
        many, few = _loops.count(outer), _loops.count(inner)
        rows = self.tile["ROWS"]
        each = few <= _FEW
        blocks, step = (triton.cdiv(many, rows), 1) if each else (many, rows)
        chunks = max(1, min(triton.cdiv(few, step * 4), triton.cdiv(_PROGRAMS, blocks)))
        chunk = triton.cdiv(triton.cdiv(few, chunks), step) * step
        chunks = triton.cdiv(few, chunk)
        targets = [grad_scale, grad_shift]
        if chunks > 1:
            targets = [
                None if t is None else t.new_empty((chunks, many * self.d), dtype=torch.float32)
                for t in targets
            ]
        integers, options = self._arguments(outer + inner)
        with on_device(self.like):
            _backward_tables[(blocks * chunks,)](
                *self.pointers,
                grad_u,
                *targets,
                many,
                few,
                chunk,
                chunks,
                *integers,
                MANY=each,
                **options,
            )
            if chunks > 1:
                elements = many * self.d
                _add_partials[(triton.cdiv(elements, _PARTIALS["COLS"]),)](
                    *targets, grad_scale, grad_shift, chunks, elements, **_PARTIALS
                )


def tile_of(d: int, elements: int) -> dict[str, int]:
    """Launch configuration for rows of ``d`` elements, on every architecture."""
    block = max(16, triton.next_power_of_2(d))
    rows = max(1, min(64, elements // block))
    num_warps = 4 if block <= 1024 else block // 256
    return {"BLOCK_D": block, "ROWS": rows, "num_warps": num_warps}


def _rows(
    x: Tensor, residual: Tensor | None, scale: Tensor, last: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    x, scale, last = (_loops.unit_last_stride(t) for t in (x, scale, last))
    return x, None if residual is None else _loops.unit_last_stride(residual), scale, last


def _strides(tensor: Tensor | None, rank: int) -> tuple[int, ...]:
    return (0,) * rank if tensor is None else _loops.leading_strides(tensor, rank)


def _align(tensors: Any, strides: list[list[int]], d: int) -> int:
    """How many elements every row start is known to be a multiple of."""
    return 8 if d % 8 == 0 and _loops.aligned(tensors, strides, 8) else 1


# ---- shipped configurations ----

_TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}


def aot_cases(capability: int) -> list[AotCase]:
    """What typical widths, and the largest, compile to; with a residual, which needs the most."""
    widths = {"float32": (16, 32, 64, 128, 1024, MAX_D), "bfloat16": (32, 64)}
    found = [case for dtype, ds in widths.items() for d in ds for case in _aot_cases(d, dtype)]
    return [*found, *(_partials_case(dtype) for dtype in widths)]


def _partials_case(dtype: str) -> AotCase:
    pointers = dict.fromkeys(("partial_scale", "partial_shift"), "*fp32")
    pointers |= dict.fromkeys(("grad_scale", "grad_shift"), _TYPES[dtype])
    signature = pointers | {"chunks": "i32", "elements": "i32"}
    return AotCase(f"add_partials/{dtype}", _add_partials, signature, dict(_PARTIALS))


def _aot_cases(d: int, dtype: str) -> list[AotCase]:
    kind, table = _TYPES[dtype], "*fp32"

    def case(kernel: Any, what: str, tile: int, pointers: dict[str, str], **more: Any) -> AotCase:
        launch = tile_of(d, tile)
        num_warps = launch.pop("num_warps")
        constexprs = {"D": d, "DIMS": 3, "ALIGN": 8, "WIDE": False, **launch, **more}
        scalars = set(kernel.arg_names) - set(pointers) - set(constexprs)
        signature = pointers | {n: "fp32" if n == "eps" else "i32" for n in sorted(scalars)}
        name = f"{what}/d{d}/{dtype}"
        options = {} if kernel is _forward else _BACKWARD_OPTIONS
        return AotCase(name, kernel, signature, constexprs, num_warps=num_warps, options=options)

    inputs = {"x": kind, "residual": kind, "scale": table}
    saved = {"mean": "*fp32", "rstd": "*fp32"}
    rows = {"grad": kind, **inputs, **saved, "grad_u": kind}
    tables = {**rows, "grad_scale": "*fp32", "grad_shift": "*fp32"}
    outputs = {"out": kind, **saved}
    return [
        case(_forward, "forward", _FORWARD_TILE, {**inputs, "shift": table, **outputs}),
        case(_backward_rows, "backward_rows", _BACKWARD_TILE, rows),
        case(_backward_tables, "backward_tables", _BACKWARD_TILE, tables, MANY=False),
        case(_backward_tables, "backward_each", _BACKWARD_TILE, tables, MANY=True),
    ]
