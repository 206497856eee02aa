"""Gradients of the decoder: its tail on B * T * M rows, and the absorbed queries."""

from __future__ import annotations

import triton
import triton.language as tl

from .decoder import attended_values, candidate_of, decoder_rows
from .encoder import load_norm, norm_row, sequence_of
from .primitives import (
    accumulate,
    accumulate_norm,
    feed_forward_backward,
    layer_norm_backward,
    product,
)
from .self_attention import load_tokens


@triton.jit(
    do_not_specialize=["num_candidates", "num_users", "num_behaviors", "num_tasks", "num_tokens"]
)
def decoder_output_backward(
    grad_out,  # [B, T, M, d], any strides
    target,
    pooled,  # [B, T, M, H, DP], as everything but target and grad_out in order of users
    offsets,
    order,
    users,
    matrices,
    vectors,
    sums,  # [programs, sums_size] in and out
    normalized,  # [B, T, M, DP] out: u2, before the FFN's scale and shift
    rstd,  # [B, T, M] out
    gradient,  # [B, T, M, DP] out: of x + FFN(x)
    stride_row,
    stride_column,
    grad_b,
    grad_t,
    grad_m,
    grad_d,
    num_candidates,
    num_users,
    num_behaviors,
    num_tasks,
    num_tokens,
    sums_size,
    eps,
    D: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    BH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARED: tl.constexpr,
):
    side: tl.constexpr = (4 * HD + 2 * FP) * DP
    column = tl.arange(0, DP)
    tables = vectors + 2 * (FP + DP)
    d_tables = sums + tl.program_id(0).to(tl.int64) * sums_size + 2 * side + 2 * (FP + DP)
    tiles = tl.cdiv(num_candidates, ROWS)
    for item_of_work in range(tl.program_id(0), tiles * num_behaviors, tl.num_programs(0)):
        behavior = item_of_work // tiles
        row = tl.cast(item_of_work % tiles, tl.int64) * ROWS + tl.arange(0, ROWS)
        exists = row < num_candidates
        begin, end = sequence_of(
            0, row, exists, users, offsets, behavior, num_users, num_tokens, SHARED
        )
        empty = end <= begin
        candidate = candidate_of(row, exists, order, SHARED)
        for task in range(num_tasks):
            pair = (row * num_tasks + task) * num_behaviors + behavior
            item = load_tokens(target, stride_row, stride_column, candidate, exists, D, DP)
            u2, rstd2, u3, rstd3 = decoder_rows(
                item, pooled, pair, exists, empty, task, behavior, num_behaviors, matrices + side,
                vectors, eps, D, H, DP, DHP, FP, HD, BH, COLUMNS, PRECISION,
            )  # fmt: skip
            tile = pair[:, None] * DP + column[None, :]
            tl.store(normalized + tile, u2.to(normalized.dtype.element_ty), mask=exists[:, None])
            tl.store(rstd + pair, rstd2, mask=exists)
            at = candidate[:, None] * grad_b + tl.cast(task, tl.int64) * grad_t
            at += tl.cast(behavior, tl.int64) * grad_m + column[None, :].to(tl.int64) * grad_d
            mask = exists[:, None] & (column < D)[None, :]
            d_out = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
            scale3, _shift3 = load_norm(tables, task, behavior, 3, num_behaviors, DP)
            row3 = norm_row(task, behavior, 3, num_behaviors) * DP
            accumulate_norm(d_tables + row3, d_out, u3, DP)
            d_u = layer_norm_backward(d_out * scale3[None, :], u3, rstd3, column < D, D)
            tl.store(gradient + tile, d_u.to(gradient.dtype.element_ty), mask=exists[:, None])
        # What one thread has added to this program's sums, another may read next.
        tl.debug_barrier()


@triton.jit(do_not_specialize=["num_candidates", "num_behaviors", "num_tasks"])
def decoder_input_backward(
    matrices,
    vectors,
    normalized,  # [B, T, M, DP]: u2
    rstd,  # [B, T, M]
    gradient,  # [B, T, M, DP]: in of x + FFN(x), out of item + attention
    sums,  # [programs, sums_size] in and out
    d_items,  # [M, B, DP] out: the residual's part of grad_target
    num_candidates,
    num_behaviors,
    num_tasks,
    sums_size,
    D: tl.constexpr,
    DP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    BH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    side: tl.constexpr = (4 * HD + 2 * FP) * DP
    column = tl.arange(0, DP)
    w1 = matrices + side + 4 * HD * DP
    b1 = vectors + FP + DP
    tables = vectors + 2 * (FP + DP)
    d_tables = sums + tl.program_id(0).to(tl.int64) * sums_size + 2 * side + 2 * (FP + DP)
    tiles = tl.cdiv(num_candidates, ROWS)
    for item_of_work in range(tl.program_id(0), tiles * num_behaviors, tl.num_programs(0)):
        behavior = item_of_work // tiles
        row = tl.cast(item_of_work % tiles, tl.int64) * ROWS + tl.arange(0, ROWS)
        exists = row < num_candidates
        d_item = tl.zeros([ROWS, DP], tl.float32)
        for task in range(num_tasks):
            pair = (row * num_tasks + task) * num_behaviors + behavior
            tile = pair[:, None] * DP + column[None, :]
            u2 = tl.load(normalized + tile, mask=exists[:, None], other=0.0).to(tl.float32)
            d_y = tl.load(gradient + tile, mask=exists[:, None], other=0.0).to(tl.float32)
            scale2, shift2 = load_norm(tables, task, behavior, 2, num_behaviors, DP)
            x = u2 * scale2[None, :] + shift2[None, :]
            d_x = feed_forward_backward(
                x, d_y, w1, b1, w1 + FP * DP, FP, BH, DP, COLUMNS, PRECISION
            )
            row2 = norm_row(task, behavior, 2, num_behaviors) * DP
            accumulate_norm(d_tables + row2, d_x, u2, DP)
            rstd2 = tl.load(rstd + pair, mask=exists, other=0.0)
            d_u = layer_norm_backward(d_x * scale2[None, :], u2, rstd2, column < D, D)
            tl.store(gradient + tile, d_u.to(gradient.dtype.element_ty), mask=exists[:, None])
            d_item += d_u
        place = tl.cast(behavior, tl.int64) * num_candidates + row
        tl.store(d_items + place[:, None] * DP + column[None, :], d_item, mask=exists[:, None])
        # What one thread has added to this program's sums, another may read next.
        tl.debug_barrier()


@triton.jit(
    do_not_specialize=["num_candidates", "num_users", "num_behaviors", "num_tasks", "num_tokens"]
)
def decoder_values_backward(
    gradient,  # [B, T, M, DP]: of item + attention
    pooled,  # [B, T, M, H, DP]
    offsets,
    users,
    matrices,
    vectors,
    sums,  # [programs, sums_size] in and out
    d_pooled,  # [B, T, M, H, DP] out
    inner,  # [B, T, M, H] out: d_pooled . pooled, for the softmax
    num_candidates,
    num_users,
    num_behaviors,
    num_tasks,
    num_tokens,
    sums_size,
    H: tl.constexpr,
    DP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Through W_O and W_V to the pooled vectors."""
    side: tl.constexpr = (4 * HD + 2 * FP) * DP
    dtype: tl.constexpr = matrices.dtype.element_ty
    column = tl.arange(0, DP)
    feature = tl.arange(0, DHP)
    tables = vectors + 2 * (FP + DP)
    mine = sums + tl.program_id(0).to(tl.int64) * sums_size
    d_tables = mine + 2 * side + 2 * (FP + DP)
    tiles = tl.cdiv(num_candidates, ROWS)
    for item_of_work in range(tl.program_id(0), tiles * num_behaviors, tl.num_programs(0)):
        behavior = item_of_work // tiles
        row = tl.cast(item_of_work % tiles, tl.int64) * ROWS + tl.arange(0, ROWS)
        exists = row < num_candidates
        begin, end = sequence_of(
            0, row, exists, users, offsets, behavior, num_users, num_tokens, SHARED
        )
        empty = end <= begin
        for task in range(num_tasks):
            pair = (row * num_tasks + task) * num_behaviors + behavior
            upstream = tl.load(
                gradient + pair[:, None] * DP + column[None, :], mask=exists[:, None], other=0.0
            )
            row1 = norm_row(task, behavior, 1, num_behaviors) * DP
            for head in range(H):
                block = side + (head * DHP + feature)[:, None] * DP + column[None, :]
                at = pair * H + head
                scale1, shift1 = load_norm(tables, task, behavior, 1, num_behaviors, DP)
                w_v = tl.load(matrices + 2 * HD * DP + block)
                w_o = tl.load(matrices + 3 * HD * DP + block)
                mean, values, output = attended_values(
                    pooled, at, exists, empty, scale1, shift1, w_v, DP, PRECISION
                )
                accumulate(
                    mine + 3 * HD * DP + block,
                    tl.dot(tl.trans(output.to(dtype)), upstream, input_precision=PRECISION),
                )
                d_output = tl.dot(upstream, tl.trans(w_o), input_precision=PRECISION)
                d_output = tl.where(empty[:, None], 0.0, d_output).to(dtype)
                accumulate(
                    mine + 2 * HD * DP + block,
                    tl.dot(tl.trans(d_output), values.to(dtype), input_precision=PRECISION),
                )
                d_values = tl.dot(d_output, w_v, input_precision=PRECISION)
                d_values = tl.where(empty[:, None], 0.0, d_values)
                accumulate_norm(d_tables + row1, d_values, mean, DP)
                d_mean = d_values * scale1[None, :]
                tl.store(
                    d_pooled + at[:, None] * DP + column[None, :],
                    d_mean.to(d_pooled.dtype.element_ty),
                    mask=exists[:, None],
                )
                tl.store(inner + at, tl.sum(d_mean * mean, axis=1), mask=exists)
                # What one thread has added to this program's sums, another may read next.
                tl.debug_barrier()


@triton.jit(do_not_specialize=["num_candidates", "num_behaviors"])
def queries_backward(
    target,
    order,
    matrices,
    d_queries,  # [M, B, H, DP]
    d_items,  # [M, B, DP]
    sums,
    grad_target,  # [B, d] out
    stride_row,
    stride_column,
    num_candidates,
    num_behaviors,
    sums_size,
    scale,
    D: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARED: tl.constexpr,
):
    side: tl.constexpr = (4 * HD + 2 * FP) * DP
    dtype: tl.constexpr = matrices.dtype.element_ty
    column = tl.arange(0, DP)
    feature = tl.arange(0, DHP)
    w_q = matrices + side
    w_k = w_q + HD * DP
    d_w_q = sums + tl.program_id(0).to(tl.int64) * sums_size + side
    d_w_k = d_w_q + HD * DP
    for tile in range(tl.program_id(0), tl.cdiv(num_candidates, ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        exists = row < num_candidates
        candidate = candidate_of(row, exists, order, SHARED)
        item = load_tokens(target, stride_row, stride_column, candidate, exists, D, DP).to(dtype)
        d_item = tl.zeros([ROWS, DP], tl.float32)
        for behavior in range(num_behaviors):
            place = tl.cast(behavior, tl.int64) * num_candidates + row
            at = place[:, None] * DP + column[None, :]
            d_item += tl.load(d_items + at, mask=exists[:, None], other=0.0)
        for head in range(H):
            d_absorbed = tl.zeros([ROWS, DP], tl.float32)
            for behavior in range(num_behaviors):
                place = (tl.cast(behavior, tl.int64) * num_candidates + row) * H + head
                at = place[:, None] * DP + column[None, :]
                d_absorbed += tl.load(d_queries + at, mask=exists[:, None], other=0.0)
            d_absorbed = (d_absorbed * scale).to(dtype)
            block = (head * DHP + feature)[:, None] * DP + column[None, :]
            weight_q = tl.load(w_q + block)
            q = product(item, weight_q, None, COLUMNS, PRECISION).to(dtype)
            accumulate(d_w_k + block, tl.dot(tl.trans(q), d_absorbed, input_precision=PRECISION))
            d_q = product(d_absorbed, tl.load(w_k + block), None, COLUMNS, PRECISION).to(dtype)
            accumulate(d_w_q + block, tl.dot(tl.trans(d_q), item, input_precision=PRECISION))
            d_item += tl.dot(d_q, weight_q, input_precision=PRECISION)
        tl.store(
            grad_target + candidate[:, None] * D + column[None, :],
            d_item.to(grad_target.dtype.element_ty),
            mask=exists[:, None] & (column < D)[None, :],
        )
        tl.debug_barrier()
