"""What happens per candidate: the absorbed queries before the tokens, the tail after (Eq. 7-8)."""

from __future__ import annotations

import triton
import triton.language as tl

from .encoder import load_norm, sequence_of
from .primitives import feed_forward, layer_norm
from .self_attention import load_tokens


@triton.jit
def candidate_of(place, exists, order, SHARED: tl.constexpr):
    """The candidates at places of the candidate list, which is in the order of the users."""
    if SHARED:
        place = tl.load(order + place, mask=exists, other=0)
    return place


@triton.jit(do_not_specialize=["num_candidates"])
def absorb_queries(
    target,  # [B, d]
    order,  # [B]: the candidate at each place; read where SHARED
    matrices,
    queries,  # [B, H, DP] out, by place: (e W_Q)_h (W_K)_h^T / sqrt(d_h)
    stride_row,
    stride_column,
    num_candidates,
    scale,  # 1 / sqrt(d_h)
    D: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < num_candidates
    column = tl.arange(0, DP)
    feature = tl.arange(0, DHP)
    w_q = matrices + (4 * HD + 2 * FP) * DP
    w_k = w_q + HD * DP
    candidate = candidate_of(row, exists, order, SHARED)
    item = load_tokens(target, stride_row, stride_column, candidate, exists, D, DP)
    item = item.to(matrices.dtype.element_ty)
    for head in range(H):
        block = (head * DHP + feature)[:, None] * DP + column[None, :]
        q = tl.dot(item, tl.trans(tl.load(w_q + block)), input_precision=PRECISION)
        absorbed = tl.dot(q.to(item.dtype), tl.load(w_k + block), input_precision=PRECISION)
        tl.store(
            queries + (row * H + head)[:, None] * DP + column[None, :],
            (absorbed * scale).to(queries.dtype.element_ty),
            mask=exists[:, None],
        )


@triton.jit
def attended_values(
    pooled, at, exists, empty, scale1, shift1, w_v, DP: tl.constexpr, PRECISION: tl.constexpr
):
    """One head: pooled rows, their affine values (zero for no keys), and the head's output."""
    column = tl.arange(0, DP)
    mean = tl.load(pooled + at[:, None] * DP + column[None, :], mask=exists[:, None], other=0.0).to(
        tl.float32
    )
    values = tl.where(empty[:, None], 0.0, mean * scale1[None, :] + shift1[None, :])
    output = tl.dot(values.to(w_v.dtype), tl.trans(w_v), input_precision=PRECISION)
    return mean, values, tl.where(empty[:, None], 0.0, output)


@triton.jit
def decoder_rows(
    item,
    pooled,
    pair,
    exists,
    empty,
    task,
    behavior,
    num_behaviors,
    decoder,
    vectors,
    eps,
    D: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    DHP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    BH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From pooled vectors to the last norm: (u2, rstd2, u3, rstd3) of a tile of rows."""
    column = tl.arange(0, DP)
    feature = tl.arange(0, DHP)
    tables = vectors + 2 * (FP + DP)
    scale1, shift1 = load_norm(tables, task, behavior, 1, num_behaviors, DP)
    scale2, shift2 = load_norm(tables, task, behavior, 2, num_behaviors, DP)
    attended = tl.zeros_like(item)
    for head in range(H):
        block = (head * DHP + feature)[:, None] * DP + column[None, :]
        w_v = tl.load(decoder + 2 * HD * DP + block)
        _mean, _values, output = attended_values(
            pooled, pair * H + head, exists, empty, scale1, shift1, w_v, DP, PRECISION
        )
        w_o = tl.load(decoder + 3 * HD * DP + block)
        attended += tl.dot(output.to(w_o.dtype), w_o, input_precision=PRECISION)
    u2, rstd2 = layer_norm(item + attended, column < D, exists, D, eps)
    x = u2 * scale2[None, :] + shift2[None, :]
    w1 = decoder + 4 * HD * DP
    b1 = vectors + FP + DP
    u = feed_forward(x, w1, b1, w1 + FP * DP, b1 + FP, FP, BH, DP, COLUMNS, PRECISION)
    u3, rstd3 = layer_norm(u, column < D, exists, D, eps)
    return u2, rstd2, u3, rstd3


@triton.jit(
    do_not_specialize=[
        "num_candidates", "num_users", "num_behaviors", "num_tasks", "num_tokens"
    ]
)  # fmt: skip
def decoder_tail(
    target,  # [B, d]
    pooled,  # [B, T, M, H, DP], by place in the candidate list
    offsets,
    order,  # [B]; read where SHARED
    users,  # [B]; read where SHARED
    matrices,
    vectors,
    out,  # [B, T, M, d] out
    stride_row,
    stride_column,
    num_candidates,
    num_users,
    num_behaviors,
    num_tasks,
    num_tokens,
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
    behavior = tl.program_id(1)
    task = tl.program_id(2)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < num_candidates
    column = tl.arange(0, DP)
    decoder = matrices + (4 * HD + 2 * FP) * DP
    begin, end = sequence_of(
        0, row, exists, users, offsets, behavior, num_users, num_tokens, SHARED
    )
    pair = (row * num_tasks + task) * num_behaviors + behavior
    candidate = candidate_of(row, exists, order, SHARED)
    item = load_tokens(target, stride_row, stride_column, candidate, exists, D, DP)
    _u2, _rstd2, u3, _rstd3 = decoder_rows(
        item, pooled, pair, exists, end <= begin, task, behavior, num_behaviors, decoder, vectors,
        eps, D, H, DP, DHP, FP, HD, BH, COLUMNS, PRECISION,
    )  # fmt: skip
    tables = vectors + 2 * (FP + DP)
    scale3, shift3 = load_norm(tables, task, behavior, 3, num_behaviors, DP)
    y = u3 * scale3[None, :] + shift3[None, :]
    at = (candidate * num_tasks + task) * num_behaviors + behavior
    tl.store(
        out + at[:, None] * D + column[None, :],
        y.to(out.dtype.element_ty),
        mask=exists[:, None] & (column < D)[None, :],
    )
