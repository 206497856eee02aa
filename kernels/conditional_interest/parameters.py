"""Weights into the layout of the kernels, and gradients out of it.

Both kernels run over the packed elements; each of the 18 parameters is a region of them. The
packed matrices have one row of DP columns per output of q, k and v, per input of o, and per hidden
unit of the FFN; behind them lie the vectors (layout.py).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _head_row(
    element,
    start,
    D: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    HP: tl.constexpr,
    DHP: tl.constexpr,
):
    """Of one packed projection: whether each element exists, its feature of a head, its column."""
    local = element - start
    row = local // DP
    column = local % DP
    head = row // DHP
    inside = row % DHP
    exists = (local >= 0) & (row < HP * DHP) & (head < H) & (inside < D // H) & (column < D)
    return exists, head * (D // H) + inside, column


@triton.jit
def _unit_row(
    element, start, D: tl.constexpr, DF: tl.constexpr, DP: tl.constexpr, FP: tl.constexpr
):
    """Of one packed FFN matrix: whether each element exists, its hidden unit, its column."""
    local = element - start
    unit = local // DP
    column = local % DP
    return (local >= 0) & (unit < DF) & (column < D), unit, column


@triton.jit
def _vector(element, start, size: tl.constexpr):
    local = element - start
    return (local >= 0) & (local < size), local


@triton.jit
def _table(element, start, pairs, D: tl.constexpr, DP: tl.constexpr):
    """Of the tables [T, M, 4, 2, DP]: exists, 1 for shifts, index into [T, M, 4, d]."""
    local = element - start
    row = local // DP
    column = local % DP
    exists = (local >= 0) & (row < pairs * 8) & (column < D)
    return exists, row % 2, (row // 2) * D + column


@triton.jit
def _pack_layer(
    element,
    start,
    q,
    k,
    v,
    o,
    w1,
    w2,
    D: tl.constexpr,
    DF: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    HP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
):
    square: tl.constexpr = HP * DHP * DP
    exists, feature, column = _head_row(element, start, D, H, DP, HP, DHP)
    value = tl.load(q + feature * D + column, mask=exists, other=0.0).to(tl.float32)
    exists, feature, column = _head_row(element, start + square, D, H, DP, HP, DHP)
    value += tl.load(k + feature * D + column, mask=exists, other=0.0).to(tl.float32)
    exists, feature, column = _head_row(element, start + 2 * square, D, H, DP, HP, DHP)
    value += tl.load(v + feature * D + column, mask=exists, other=0.0).to(tl.float32)
    exists, feature, column = _head_row(element, start + 3 * square, D, H, DP, HP, DHP)
    value += tl.load(o + column * D + feature, mask=exists, other=0.0).to(tl.float32)
    exists, unit, column = _unit_row(element, start + 4 * square, D, DF, DP, FP)
    value += tl.load(w1 + unit * D + column, mask=exists, other=0.0).to(tl.float32)
    exists, unit, column = _unit_row(element, start + 4 * square + FP * DP, D, DF, DP, FP)
    value += tl.load(w2 + column * DF + unit, mask=exists, other=0.0).to(tl.float32)
    return value


@triton.jit(do_not_specialize=["pairs", "num_vectors"])
def pack_parameters(
    enc_q,
    enc_k,
    enc_v,
    enc_o,
    enc_w1,
    enc_b1,
    enc_w2,
    enc_b2,
    dec_q,
    dec_k,
    dec_v,
    dec_o,
    dec_w1,
    dec_b1,
    dec_w2,
    dec_b2,
    scale,  # [T, M, 4, d]
    shift,
    matrices,  # out, dtype of the products
    vectors,  # out, float32
    pairs,  # T * M
    num_vectors,  # elements of `vectors`
    D: tl.constexpr,
    DF: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    HP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    side: tl.constexpr = (4 * HP * DHP + 2 * FP) * DP
    first = tl.program_id(0) * BLOCK
    element = first + tl.arange(0, BLOCK)
    # Each region ends on a multiple of 512 elements or more, and a block lies in one kind.
    if first < 2 * side:
        if first < side:
            value = _pack_layer(
                element, 0, enc_q, enc_k, enc_v, enc_o, enc_w1, enc_w2, D, DF, H, DP, HP, DHP, FP
            )
            tl.store(matrices + element, value.to(matrices.dtype.element_ty))
        else:
            value = _pack_layer(
                element, side, dec_q, dec_k, dec_v, dec_o, dec_w1, dec_w2, D, DF, H, DP, HP, DHP, FP
            )
            tl.store(matrices + element, value.to(matrices.dtype.element_ty))
    else:
        element -= 2 * side
        exists, at = _vector(element, 0, DF)
        value = tl.load(enc_b1 + at, mask=exists, other=0.0).to(tl.float32)
        exists, at = _vector(element, FP, D)
        value += tl.load(enc_b2 + at, mask=exists, other=0.0).to(tl.float32)
        exists, at = _vector(element, FP + DP, DF)
        value += tl.load(dec_b1 + at, mask=exists, other=0.0).to(tl.float32)
        exists, at = _vector(element, 2 * FP + DP, D)
        value += tl.load(dec_b2 + at, mask=exists, other=0.0).to(tl.float32)
        exists, is_shift, at = _table(element, 2 * (FP + DP), pairs, D, DP)
        value += tl.load(scale + at, mask=exists & (is_shift == 0), other=0.0).to(tl.float32)
        value += tl.load(shift + at, mask=exists & (is_shift == 1), other=0.0).to(tl.float32)
        tl.store(vectors + element, value, mask=element < num_vectors)


@triton.jit
def _unpack_layer(
    element,
    start,
    value,
    q,
    k,
    v,
    o,
    w1,
    w2,
    D: tl.constexpr,
    DF: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    HP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
):
    square: tl.constexpr = HP * DHP * DP
    exists, feature, column = _head_row(element, start, D, H, DP, HP, DHP)
    tl.store(q + feature * D + column, value.to(q.dtype.element_ty), mask=exists)
    exists, feature, column = _head_row(element, start + square, D, H, DP, HP, DHP)
    tl.store(k + feature * D + column, value.to(k.dtype.element_ty), mask=exists)
    exists, feature, column = _head_row(element, start + 2 * square, D, H, DP, HP, DHP)
    tl.store(v + feature * D + column, value.to(v.dtype.element_ty), mask=exists)
    exists, feature, column = _head_row(element, start + 3 * square, D, H, DP, HP, DHP)
    tl.store(o + column * D + feature, value.to(o.dtype.element_ty), mask=exists)
    exists, unit, column = _unit_row(element, start + 4 * square, D, DF, DP, FP)
    tl.store(w1 + unit * D + column, value.to(w1.dtype.element_ty), mask=exists)
    exists, unit, column = _unit_row(element, start + 4 * square + FP * DP, D, DF, DP, FP)
    tl.store(w2 + column * DF + unit, value.to(w2.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["num_sums", "pairs"])
def sum_parameter_gradients(
    sums,  # [num_sums, sums_size] float32: what each program has summed
    enc_q,  # out, and so on
    enc_k,
    enc_v,
    enc_o,
    enc_w1,
    enc_b1,
    enc_w2,
    enc_b2,
    dec_q,
    dec_k,
    dec_v,
    dec_o,
    dec_w1,
    dec_b1,
    dec_w2,
    dec_b2,
    scale,
    shift,
    num_sums,
    sums_size,
    pairs,
    D: tl.constexpr,
    DF: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    HP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
    BLOCK: tl.constexpr,
    SUMS: tl.constexpr,
):
    side: tl.constexpr = (4 * HP * DHP + 2 * FP) * DP
    first = tl.program_id(0) * BLOCK
    element = first + tl.arange(0, BLOCK)
    which = tl.arange(0, SUMS).to(tl.int64)
    total = tl.zeros([SUMS, BLOCK], tl.float32)
    for begin in range(0, num_sums, SUMS):
        mask = (begin + which < num_sums)[:, None] & (element < sums_size)[None, :]
        at = (begin + which)[:, None] * sums_size + element[None, :]
        total += tl.load(sums + at, mask=mask, other=0.0)
    value = tl.sum(total, axis=0)
    if first < side:
        _unpack_layer(
            element, 0, value, enc_q, enc_k, enc_v, enc_o, enc_w1, enc_w2,
            D, DF, H, DP, HP, DHP, FP,
        )  # fmt: skip
    elif first < 2 * side:
        _unpack_layer(
            element, side, value, dec_q, dec_k, dec_v, dec_o, dec_w1, dec_w2,
            D, DF, H, DP, HP, DHP, FP,
        )  # fmt: skip
    else:
        element -= 2 * side
        exists, at = _vector(element, 0, DF)
        tl.store(enc_b1 + at, value.to(enc_b1.dtype.element_ty), mask=exists)
        exists, at = _vector(element, FP, D)
        tl.store(enc_b2 + at, value.to(enc_b2.dtype.element_ty), mask=exists)
        exists, at = _vector(element, FP + DP, DF)
        tl.store(dec_b1 + at, value.to(dec_b1.dtype.element_ty), mask=exists)
        exists, at = _vector(element, 2 * FP + DP, D)
        tl.store(dec_b2 + at, value.to(dec_b2.dtype.element_ty), mask=exists)
        exists, is_shift, at = _table(element, 2 * (FP + DP), pairs, D, DP)
        tl.store(scale + at, value.to(scale.dtype.element_ty), mask=exists & (is_shift == 0))
        tl.store(shift + at, value.to(shift.dtype.element_ty), mask=exists & (is_shift == 1))
