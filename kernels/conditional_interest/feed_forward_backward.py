"""Gradients of the weights of an FFN, by hidden units instead of by rows.

A program holds the gradients of one block of hidden units on chip and runs over a share of the
rows, whose gradients the other kernels have left in memory. It writes every sum once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .encoder import norm_row
from .primitives import hidden_units_backward


@triton.jit(do_not_specialize=["num_rows", "period", "num_tokens", "num_users", "num_behaviors"])
def feed_forward_weights_backward(
    normalized,  # rows before scale and shift: [N, DP] (u0) or [B, T, M, DP] (u2)
    gradient,  # [T, N, DP] or [B, T, M, DP], of x + FFN(x)
    segments,  # [N]; read where ENCODER
    matrices,  # of this layer
    biases,  # of this layer: [FP], [DP]
    tables,  # [T, M, 4, 2, DP] float32
    sums,  # [programs, sums_size] out: the matrices' part of this layer
    bias_sums,  # the same memory: the biases' part
    num_rows,
    period,  # rows of one task (N), or rows of one candidate (T * M)
    num_users,
    num_behaviors,
    sums_size,
    DP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    BH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    ENCODER: tl.constexpr,
):
    dtype: tl.constexpr = matrices.dtype.element_ty
    column = tl.arange(0, DP)
    block = tl.program_id(0) * BH
    share = tl.program_id(1)
    unit = block + tl.arange(0, BH)
    w1 = matrices + 4 * HD * DP
    w2 = w1 + FP * DP
    d_w1 = tl.zeros([BH, DP], tl.float32)
    d_w2 = tl.zeros([BH, DP], tl.float32)
    d_b1 = tl.zeros([BH], tl.float32)
    d_b2 = tl.zeros([DP], tl.float32)
    for tile in range(share, tl.cdiv(num_rows, ROWS), tl.num_programs(1)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        exists = row < num_rows
        if ENCODER:
            task = row // period
            source = row - task * period
            segment = tl.load(segments + source, mask=exists, other=-1)
            exists = segment >= 0
            norm = norm_row(task, tl.maximum(segment, 0) // num_users, 0, num_behaviors)
        else:
            source = row
            norm = ((row % period) * 4 + 2) * 2
        u = tl.load(
            normalized + source[:, None] * DP + column[None, :], mask=exists[:, None], other=0.0
        ).to(tl.float32)
        at = tables + norm[:, None] * DP + column[None, :]
        scale = tl.load(at, mask=exists[:, None], other=0.0)
        shift = tl.load(at + DP, mask=exists[:, None], other=0.0)
        x = (u * scale + shift).to(dtype)
        d_y = tl.load(
            gradient + row[:, None] * DP + column[None, :], mask=exists[:, None], other=0.0
        )
        h, d_h, _weight1 = hidden_units_backward(
            x, d_y, w1, biases, w2, block, BH, DP, COLUMNS, PRECISION
        )
        d_w1 += tl.dot(tl.trans(d_h.to(dtype)), x, input_precision=PRECISION)
        d_w2 += tl.dot(tl.trans(h.to(dtype)), d_y, input_precision=PRECISION)
        d_b1 += tl.sum(d_h, axis=0)
        if block == 0:
            d_b2 += tl.sum(d_y.to(tl.float32), axis=0)
    mine = tl.cast(share, tl.int64) * sums_size
    weights = sums + mine + 4 * HD * DP + unit[:, None] * DP + column[None, :]
    tl.store(weights, d_w1)
    tl.store(weights + FP * DP, d_w2)
    tl.store(bias_sums + mine + unit, d_b1)
    if block == 0:
        tl.store(bias_sums + mine + FP + column, d_b2)
