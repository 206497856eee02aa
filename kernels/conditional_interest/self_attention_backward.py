"""Gradients of the residual and self-attention before the tasks, computed again from x.

Four launches over tiles of tokens: the projections; by queries (output, statistics, dQ); by keys
(dK, dV); and back through the projections. No two programs write the same row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .primitives import accumulate, finite
from .self_attention import (
    NO_SEGMENT,
    attend,
    attention_scores,
    key_range,
    load_head,
    load_tokens,
    project_rows,
    store_head,
)


@triton.jit(do_not_specialize=["num_tokens"])
def project_tokens_backward(
    values,  # [N, d]
    segments,  # [N]
    matrices,
    gradient,  # [N, DP] float32, of x + MHSA(x)
    projected,  # [4, N, HD] out: Q, K, V and the gradient of the heads' output
    stride_row,
    stride_column,
    num_tokens,
    D: tl.constexpr,
    DP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < num_tokens
    live = tl.load(segments + row, mask=valid, other=-1) >= 0
    column = tl.arange(0, DP)
    dtype: tl.constexpr = matrices.dtype.element_ty
    plane = tl.cast(num_tokens, tl.int64) * HD
    x = load_tokens(values, stride_row, stride_column, row, live, D, DP).to(dtype)
    for i in range(3):
        out = projected + plane * i
        project_rows(x, matrices, i * HD, out, row, valid, HD, DP, COLUMNS, PRECISION)

    at = row[:, None] * DP + column[None, :]
    d_u = tl.load(gradient + at, mask=valid[:, None], other=0.0)
    out = projected + plane * 3
    d_u = d_u.to(dtype)
    project_rows(d_u, matrices, 3 * HD, out, row, valid, HD, DP, COLUMNS, PRECISION)


@triton.jit(do_not_specialize=["num_tokens"])
def attention_backward_queries(
    projected,  # [4, N, HD]
    segments,
    offsets,
    mixed,  # [N, HD] out: the heads' output
    statistics,  # [2, H, N] out: the softmax's maximum, and 1 over its denominator
    inner,  # [H, N] out: output . its gradient
    d_query,  # [N, HD] out
    num_tokens,
    scale,
    H: tl.constexpr,
    DHP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < num_tokens
    segment = tl.load(segments + row, mask=valid, other=-1)
    live = segment >= 0
    begin, end, several = key_range(offsets, segment, live, num_tokens)
    segment = tl.where(live, segment, NO_SEGMENT)
    plane = tl.cast(num_tokens, tl.int64) * HD
    for head in range(H):
        output, largest, inverse = attend(
            projected, segments, row, valid, segment, begin, end, head, num_tokens, scale,
            DHP, HD, KEYS, PRECISION,
        )  # fmt: skip
        q = load_head(projected, row, valid, head, DHP, HD)
        upstream = load_head(projected + 3 * plane, row, valid, head, DHP, HD)
        along = tl.sum(output * upstream.to(tl.float32), axis=1)
        d_q = tl.zeros([ROWS, DHP], tl.float32)
        for first in range(begin, end, KEYS):
            key = first + tl.arange(0, KEYS)
            exists = key < end
            key_segment = tl.load(segments + key, mask=exists, other=-2)
            k = load_head(projected + plane, key, exists, head, DHP, HD)
            v = load_head(projected + 2 * plane, key, exists, head, DHP, HD)
            scores, same = attention_scores(q, k, segment, key_segment, scale, PRECISION)
            weights = tl.exp(scores - largest[:, None]) * inverse[:, None]
            d_weights = tl.dot(upstream, tl.trans(v), input_precision=PRECISION)
            d_scores = weights * (d_weights - along[:, None])
            d_scores = tl.where(same & several[:, None], d_scores, 0.0)
            k = finite(k.to(tl.float32)).to(k.dtype)
            d_q += tl.dot(d_scores.to(k.dtype), k, input_precision=PRECISION)
        store_head(mixed, row, valid, head, output, DHP, HD)
        store_head(d_query, row, valid, head, d_q * scale, DHP, HD)
        at = tl.cast(head, tl.int64) * num_tokens + row
        tl.store(statistics + at, largest, mask=valid)
        tl.store(statistics + tl.cast(num_tokens, tl.int64) * H + at, inverse, mask=valid)
        tl.store(inner + at, along, mask=valid)


@triton.jit(do_not_specialize=["num_tokens"])
def attention_backward_keys(
    projected,  # [4, N, HD]
    segments,
    offsets,
    statistics,  # [2, H, N]
    inner,  # [H, N]
    d_key,  # [N, HD] out
    d_value,  # [N, HD] out
    num_tokens,
    scale,
    H: tl.constexpr,
    DHP: tl.constexpr,
    HD: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < num_tokens
    segment = tl.load(segments + row, mask=valid, other=-1)
    live = segment >= 0
    begin, end, several = key_range(offsets, segment, live, num_tokens)
    segment = tl.where(live, segment, NO_SEGMENT)
    plane = tl.cast(num_tokens, tl.int64) * HD
    for head in range(H):
        k = load_head(projected + plane, row, valid, head, DHP, HD)
        v = load_head(projected + 2 * plane, row, valid, head, DHP, HD)
        d_k = tl.zeros([ROWS, DHP], tl.float32)
        d_v = tl.zeros([ROWS, DHP], tl.float32)
        for first in range(begin, end, QUERIES):
            query = first + tl.arange(0, QUERIES)
            exists = query < end
            query_segment = tl.load(segments + query, mask=exists, other=-2)
            q = load_head(projected, query, exists, head, DHP, HD)
            upstream = load_head(projected + 3 * plane, query, exists, head, DHP, HD)
            at = tl.cast(head, tl.int64) * num_tokens + query
            largest = tl.load(statistics + at, mask=exists, other=0.0)
            at_inverse = tl.cast(num_tokens, tl.int64) * H + at
            inverse = tl.load(statistics + at_inverse, mask=exists, other=0.0)
            along = tl.load(inner + at, mask=exists, other=0.0)
            scores, same = attention_scores(k, q, segment, query_segment, scale, PRECISION)
            weights = tl.exp(scores - largest[None, :]) * inverse[None, :]
            weights = tl.where(same, weights, 0.0)
            d_weights = tl.dot(v, tl.trans(upstream), input_precision=PRECISION)
            d_scores = weights * (d_weights - along[None, :])
            d_scores = tl.where(same & several[:, None], d_scores, 0.0)
            q = finite(q.to(tl.float32)).to(q.dtype)
            upstream = finite(upstream.to(tl.float32)).to(q.dtype)
            d_v += tl.dot(weights.to(q.dtype), upstream, input_precision=PRECISION)
            d_k += tl.dot(d_scores.to(q.dtype), q, input_precision=PRECISION)
        store_head(d_key, row, valid, head, d_k * scale, DHP, HD)
        store_head(d_value, row, valid, head, d_v, DHP, HD)


@triton.jit
def projection_backward(
    x,
    gradient,
    weight,
    d_weight,
    feature,
    row,
    mask,
    HD: tl.constexpr,
    DP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds dY^T x to the weight's gradient and returns dY W, for some of the HD features."""
    column = tl.arange(0, DP)
    at = row[:, None] * HD + feature[None, :]
    d_y = tl.load(gradient + at, mask=mask, other=0.0)
    block = feature[:, None] * DP + column[None, :]
    accumulate(d_weight + block, tl.dot(tl.trans(d_y), x, input_precision=PRECISION))
    return tl.dot(d_y, tl.load(weight + block), input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_tokens"])
def tokens_backward(
    values,
    segments,
    matrices,
    gradient,  # [N, DP] float32, of x + MHSA(x)
    mixed,  # [N, HD]
    d_query,  # [N, HD]
    d_key,
    d_value,
    sums,  # [programs, sums_size] in and out
    grad_values,  # [N, d] out
    stride_row,
    stride_column,
    num_tokens,
    sums_size,
    D: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
    DHP: tl.constexpr,
    HD: tl.constexpr,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype: tl.constexpr = matrices.dtype.element_ty
    square: tl.constexpr = HD * DP
    column = tl.arange(0, DP)
    mine = sums + tl.program_id(0).to(tl.int64) * sums_size
    for tile in range(tl.program_id(0), tl.cdiv(num_tokens, ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        valid = row < num_tokens
        live = tl.load(segments + row, mask=valid, other=-1) >= 0
        x = load_tokens(values, stride_row, stride_column, row, live, D, DP).to(dtype)
        at = row[:, None] * DP + column[None, :]
        d_x = tl.load(gradient + at, mask=valid[:, None], other=0.0)
        d_u = d_x.to(dtype)
        for first in range(0, HD, FEATURES):
            feature = first + tl.arange(0, FEATURES)
            mask = valid[:, None] & (feature < H * DHP)[None, :]  # padding heads are not written
            d_x += projection_backward(
                x, d_query, matrices, mine, feature, row, mask, HD, DP, PRECISION
            )
            d_x += projection_backward(
                x, d_key, matrices + square, mine + square, feature, row, mask, HD, DP, PRECISION
            )
            d_x += projection_backward(
                x, d_value, matrices + 2 * square, mine + 2 * square, feature, row, mask,
                HD, DP, PRECISION,
            )  # fmt: skip
            output = tl.load(mixed + row[:, None] * HD + feature[None, :], mask=mask, other=0.0)
            accumulate(
                mine + 3 * square + feature[:, None] * DP + column[None, :],
                tl.dot(tl.trans(output), d_u, input_precision=PRECISION),
            )
        tl.store(
            grad_values + row[:, None] * D + column[None, :],
            d_x.to(grad_values.dtype.element_ty),
            mask=valid[:, None] & (column < D)[None, :],
        )
        tl.debug_barrier()
