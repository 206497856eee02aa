"""Steps before the tasks: Q, K, V of every token, self-attention, residual, norm (DTRN Eq. 3-5).

Tiles of tokens are cut without regard to sequences. A tile's queries meet the keys of all sequences
that the tile touches, block-diagonally, with an online softmax: many short sequences fill one tile,
and a long one runs through several.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .primitives import clamped, finite, layer_norm, product

# Of a row that attends to nothing; keys that do not exist have -2, those of idle users -1.
NO_SEGMENT: tl.constexpr = tl.constexpr(-3)


@triton.jit
def load_tokens(values, stride_row, stride_column, row, live, D: tl.constexpr, DP: tl.constexpr):
    """Rows of ``values [N, d]`` with any strides -> [R, DP]; zeros for rows that are not live."""
    column = tl.arange(0, DP)
    mask = live[:, None] & (column < D)[None, :]
    at = row[:, None] * stride_row + column[None, :].to(tl.int64) * stride_column
    return tl.load(values + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def key_range(offsets, segment, live, num_tokens):
    """First and last token of all sequences that a tile touches, and whose rows have several keys.

    A softmax over one key has the gradient zero, exactly, which rounding would miss.
    """
    own = tl.where(live, segment, 0).to(tl.int64)
    begin = clamped(offsets + own, live, num_tokens)
    end = clamped(offsets + own + 1, live, num_tokens)
    first = tl.min(tl.where(live, begin, num_tokens), axis=0)
    return first, tl.max(tl.where(live, end, 0), axis=0), end - begin > 1


@triton.jit
def load_head(projected, row, valid, head, DHP: tl.constexpr, HD: tl.constexpr):
    """One head of rows of a [N, HD] buffer -> [R, DHP]."""
    column = tl.arange(0, DHP)
    at = row[:, None] * HD + head * DHP + column[None, :]
    return tl.load(projected + at, mask=valid[:, None], other=0.0)


@triton.jit
def store_head(projected, row, valid, head, values, DHP: tl.constexpr, HD: tl.constexpr):
    column = tl.arange(0, DHP)
    at = row[:, None] * HD + head * DHP + column[None, :]
    tl.store(projected + at, values.to(projected.dtype.element_ty), mask=valid[:, None])


@triton.jit
def project_rows(
    x,
    weight,
    first_row,
    out,
    row,
    valid,
    HD: tl.constexpr,
    DP: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [N, HD] = x W^T with the packed rows [first_row, first_row + HD) of ``weight``."""
    column = tl.arange(0, DP)
    feature = tl.arange(0, HD)
    w = tl.load(weight + (first_row + feature)[:, None] * DP + column[None, :])
    y = product(x, w, None, COLUMNS, PRECISION)
    tl.store(
        out + row[:, None] * HD + feature[None, :],
        y.to(out.dtype.element_ty),
        mask=valid[:, None],
    )


@triton.jit(do_not_specialize=["num_tokens"])
def project_tokens(
    values,  # [N, d]
    segments,  # [N]
    matrices,  # packed
    projected,  # [3, N, HD] out: Q, K, V
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
    x = load_tokens(values, stride_row, stride_column, row, live, D, DP)
    x = x.to(matrices.dtype.element_ty)
    for i in range(3):
        out = projected + tl.cast(num_tokens, tl.int64) * HD * i
        project_rows(x, matrices, i * HD, out, row, valid, HD, DP, COLUMNS, PRECISION)


@triton.jit
def attention_scores(q, k, query_segment, key_segment, scale, PRECISION: tl.constexpr):
    """Scaled scores [R, K] and which of them are within one sequence."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    return scores, query_segment[:, None] == key_segment[None, :]


@triton.jit
def attend(
    projected,
    segments,
    row,
    valid,
    segment,
    begin,
    end,
    head,
    num_tokens,
    scale,
    DHP: tl.constexpr,
    HD: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head of the tile's queries: output [R, DHP], maximum of the scores, 1 / denominator."""
    plane = tl.cast(num_tokens, tl.int64) * HD
    q = load_head(projected, row, valid, head, DHP, HD)
    largest = tl.full([row.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([row.shape[0]], tl.float32)
    mixed = tl.zeros([row.shape[0], DHP], tl.float32)
    for first in range(begin, end, KEYS):
        key = first + tl.arange(0, KEYS)
        exists = key < end
        key_segment = tl.load(segments + key, mask=exists, other=-2)
        k = load_head(projected + plane, key, exists, head, DHP, HD)
        v = load_head(projected + 2 * plane, key, exists, head, DHP, HD)
        scores, same = attention_scores(q, k, segment, key_segment, scale, PRECISION)
        # A value that is not finite reaches its own sequence by the score, and no other's.
        poison = tl.sum(v.to(tl.float32) * 0.0, axis=1)
        scores = tl.where(same, scores + poison[None, :], float("-inf"))
        next_largest = tl.maximum(largest, tl.max(scores, axis=1))
        reference = tl.where(next_largest == float("-inf"), 0.0, next_largest)
        weights = tl.exp(scores - reference[:, None])
        fade = tl.exp(largest - reference)
        total = total * fade + tl.sum(weights, axis=1)
        v = finite(v.to(tl.float32)).to(v.dtype)
        mixed = mixed * fade[:, None]
        mixed += tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        largest = next_largest
    inverse = 1.0 / tl.where(total == 0.0, 1.0, total)
    return mixed * inverse[:, None], tl.where(largest == float("-inf"), 0.0, largest), inverse


@triton.jit(do_not_specialize=["num_tokens", "eps"])
def self_attention(
    values,  # [N, d]
    projected,  # [3, N, HD]
    segments,  # [N]
    offsets,  # [M*U+1]
    matrices,
    normalized,  # [N, DP] out: u0 = norm(x + MHSA(x)), before any scale and shift
    rstd,  # [N] out
    stride_row,
    stride_column,
    num_tokens,
    scale,  # 1 / sqrt(d_h)
    eps,
    D: tl.constexpr,
    H: tl.constexpr,
    DP: tl.constexpr,
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
    begin, end, _several = key_range(offsets, segment, live, num_tokens)
    segment = tl.where(live, segment, NO_SEGMENT)
    column = tl.arange(0, DP)
    feature = tl.arange(0, DHP)
    out_proj = matrices + 3 * HD * DP
    attended = tl.zeros([ROWS, DP], tl.float32)
    for head in range(H):
        mixed, _largest, _inverse_sum = attend(
            projected, segments, row, valid, segment, begin, end, head, num_tokens, scale,
            DHP, HD, KEYS, PRECISION,
        )  # fmt: skip
        w = tl.load(out_proj + (head * DHP + feature)[:, None] * DP + column[None, :])
        attended += tl.dot(mixed.to(w.dtype), w, input_precision=PRECISION)
    u = load_tokens(values, stride_row, stride_column, row, live, D, DP) + attended
    u0, inverse = layer_norm(u, column < D, live, D, eps)
    tl.store(
        normalized + row[:, None] * DP + column[None, :],
        u0.to(normalized.dtype.element_ty),
        mask=valid[:, None],
    )
    tl.store(rstd + row, inverse, mask=valid)
