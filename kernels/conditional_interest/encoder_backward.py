"""Gradients of the pass over the tokens. Everything is computed again from u0, tile by tile.

First by users: a program takes all tokens and all candidates of a few users in one behavior, so
that no two programs add to the same row, and leaves the gradient before the last norm. Then by
tokens: through the FFN, the first scale and shift, and the norm before the tasks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .encoder import encoded_tokens, load_norm, norm_row, sequence_of, within_tile
from .primitives import (
    accumulate,
    clamped,
    feed_forward_backward,
    finite,
    layer_norm_backward,
    product,
    tile_offsets,
)


@triton.jit
def pooling_backward(
    key,
    first,
    first_place,
    last_place,
    behavior,
    task,
    scale1,
    d_scale1,
    queries,
    d_pooled,
    statistics,
    inner,
    offsets,
    users,
    d_queries,
    num_candidates,
    num_users,
    num_behaviors,
    num_tasks,
    num_tokens,
    H: tl.constexpr,
    DP: tl.constexpr,
    HP: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Gradient of a tile of u1 [TOKENS, DP]; adds to those of the queries and of scale1.

    What is not finite enters the products as zero: the softmax statistics of the same candidate
    carry it to where it belongs.
    """
    dtype: tl.constexpr = queries.dtype.element_ty
    pairs: tl.constexpr = CANDIDATES * HP
    column = tl.arange(0, DP)
    token = tl.arange(0, TOKENS)
    pair = tl.arange(0, pairs)
    local = pair // HP
    head = pair % HP
    d_u1 = tl.zeros([TOKENS, DP], tl.float32)
    for place in range(first_place, last_place, CANDIDATES):
        start = tl.cast(place, tl.int64)
        exists = local < last_place - start
        begin, end = sequence_of(
            start, local, exists, users, offsets, behavior, num_users, num_tokens, SHARED
        )
        several = end - begin > 1  # a softmax over one key has the gradient zero, exactly
        begin = within_tile(begin, first, TOKENS)
        end = within_tile(end, first, TOKENS)
        real = exists & (head < H)
        absorbed = tl.load(
            queries + start * H * DP + (local * H + head)[:, None] * DP + column[None, :],
            mask=real[:, None],
            other=0.0,
        ).to(tl.float32)
        scale = tl.load(scale1 + column)
        query = finite(absorbed * scale[None, :]).to(dtype)
        base = ((start * num_tasks + task) * num_behaviors + behavior) * H
        at = local * (num_tasks * num_behaviors * H) + head
        upstream = tl.load(
            d_pooled + base * DP + at[:, None] * DP + column[None, :], mask=real[:, None], other=0.0
        )
        upstream = finite(upstream.to(tl.float32)).to(dtype)
        largest = tl.load(statistics + base * 2 + at * 2, mask=real, other=0.0)
        inverse = tl.load(statistics + base * 2 + at * 2 + 1, mask=real, other=0.0)
        along = tl.load(inner + base + at, mask=real, other=0.0)

        own = (token[:, None] >= begin[None, :]) & (token[:, None] < end[None, :])
        own = own & real[None, :]
        if COLUMNS < DP:  # one product, which holds the columns of ``key`` once
            both = tl.reshape(tl.permute(tl.join(query, upstream), (0, 2, 1)), [2 * pairs, DP])
            both = product(key, both, None, COLUMNS, PRECISION)
            scores, d_weights = tl.split(tl.reshape(both, [TOKENS, pairs, 2]))
        else:
            scores = product(key, query, None, COLUMNS, PRECISION)  # [TOKENS, pairs]
            d_weights = product(key, upstream, None, COLUMNS, PRECISION)
        weights = tl.exp(scores - largest[None, :]) * inverse[None, :]
        weights = tl.where(own, weights, 0.0)
        d_scores = weights * (d_weights - along[None, :])
        d_scores = tl.where(own & several[None, :], d_scores, 0.0).to(dtype)
        d_query = tl.dot(tl.trans(d_scores), key, input_precision=PRECISION)  # [pairs, DP]
        accumulate(d_scale1 + column, tl.sum(d_query * absorbed, axis=0))
        mine = d_queries + (tl.cast(behavior, tl.int64) * num_candidates + start) * H * DP
        pointers = mine + (local * H + head)[:, None] * DP + column[None, :]
        before = tl.load(pointers, mask=real[:, None], other=0.0)
        tl.store(pointers, before + d_query * scale[None, :], mask=real[:, None])
        # Last: the compiler would move the sums here anyway, and hold their operands until then.
        d_u1 += tl.dot(weights.to(dtype), upstream, input_precision=PRECISION)
        d_u1 += tl.dot(d_scores, query, input_precision=PRECISION)
        # What one thread has added up, another may read next.
        tl.debug_barrier()
    return d_u1


@triton.jit(
    do_not_specialize=["num_candidates", "num_users", "num_behaviors", "num_tasks", "num_tokens"]
)
def encoder_output_backward(
    normalized,  # [N, DP]
    segments,  # [N]
    queries,  # [B, H, DP]
    d_pooled,  # [B, T, M, H, DP]
    statistics,  # [B, T, M, H, 2]
    inner,  # [B, T, M, H]
    offsets,
    users,  # [B]; read where SHARED
    candidate_begin,  # [U+1]; read where SHARED
    matrices,
    vectors,
    sums,  # [programs, sums_size] in and out
    d_queries,  # [M, B, H, DP] in (zeros) and out
    d_encoded,  # [T, N, DP] out: gradient of x + FFN(x); in, where ENCODED: u1
    deviations,  # [T, N]: of u1, reciprocal; read where ENCODED
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
    HP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TOKENS: tl.constexpr,
    BH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARED: tl.constexpr,
    ENCODED: tl.constexpr,
):
    dtype: tl.constexpr = matrices.dtype.element_ty
    w1 = matrices + 4 * HD * DP
    w2 = w1 + FP * DP
    tables = vectors + 2 * (FP + DP)
    d_tables = sums + tl.program_id(0).to(tl.int64) * sums_size
    d_tables += 2 * (4 * HD + 2 * FP) * DP + 2 * (FP + DP)

    tiles = tl.cdiv(num_users, CANDIDATES)
    for item in range(tl.program_id(0), tiles * num_behaviors, tl.num_programs(0)):
        behavior = item // tiles
        first_user = (item % tiles) * CANDIDATES
        last_user = tl.minimum(first_user + CANDIDATES, num_users)
        user = first_user + tl.arange(0, CANDIDATES)
        segment = tl.cast(behavior, tl.int64) * num_users + user
        begin = clamped(offsets + segment, user < num_users, num_tokens)
        end = clamped(offsets + segment + 1, user < num_users, num_tokens)
        first_token = tl.min(tl.where(end > begin, begin, num_tokens), axis=0)
        last_token = tl.max(end, axis=0)
        if SHARED:
            first_place = tl.load(candidate_begin + first_user)
            last_place = tl.load(candidate_begin + last_user)
        else:
            first_place = first_user
            last_place = last_user

        for task in range(num_tasks):
            row1 = norm_row(task, behavior, 1, num_behaviors) * DP
            for first in range(first_token, last_token, TOKENS):
                token = tl.arange(0, TOKENS)
                exists = token < within_tile(last_token, first, TOKENS)
                place = tl.cast(task, tl.int64) * num_tokens + first
                tile = d_encoded + place * DP + tile_offsets(TOKENS, DP)
                if ENCODED:
                    u1 = tl.load(tile, mask=exists[:, None], other=0.0).to(tl.float32)
                    rstd1 = tl.load(deviations + place + token, mask=exists, other=0.0)
                else:
                    live = exists
                    if SHARED:
                        live = tl.load(segments + first + token, mask=exists, other=-1) >= 0
                    scale0, shift0 = load_norm(tables, task, behavior, 0, num_behaviors, DP)
                    u1, rstd1 = encoded_tokens(
                        normalized, first, live, scale0, shift0, w1, vectors, w2, vectors + FP,
                        eps, D, DP, FP, BH, TOKENS, COLUMNS, PRECISION,
                    )  # fmt: skip
                gradient = pooling_backward(
                    finite(u1).to(dtype), first, first_place, last_place, behavior, task,
                    tables + row1, d_tables + row1, queries, d_pooled, statistics, inner, offsets,
                    users, d_queries, num_candidates, num_users, num_behaviors,
                    num_tasks, num_tokens,
                    H, DP, HP, CANDIDATES, TOKENS, COLUMNS, PRECISION, SHARED,
                )  # fmt: skip
                gradient = layer_norm_backward(gradient, u1, rstd1, tl.arange(0, DP) < D, D)
                if ENCODED:
                    tl.debug_barrier()  # Every thread has read u1.
                gradient = gradient.to(d_encoded.dtype.element_ty)
                tl.store(tile, gradient, mask=exists[:, None])


@triton.jit
def behavior_tile(item, offsets, num_users, num_behaviors, num_tokens, ROWS: tl.constexpr):
    """The item-th tile of ROWS tokens that lies in one behavior: behavior, first and last token.

    The last two are equal where there are fewer tiles.
    """
    behavior = 0
    first = tl.cast(0, tl.int64)
    last = tl.cast(0, tl.int64)
    before = tl.cast(0, tl.int64)
    for b in range(num_behaviors):
        segment = tl.cast(b, tl.int64) * num_users
        begin = clamped(offsets + segment, True, num_tokens)
        end = clamped(offsets + segment + num_users, True, num_tokens)
        after = before + tl.maximum(end - begin + ROWS - 1, 0) // ROWS
        inside = (item >= before) & (item < after)
        behavior = tl.where(inside, b, behavior)
        first = tl.where(inside, begin + (item - before) * ROWS, first)
        last = tl.where(inside, tl.minimum(begin + (item - before + 1) * ROWS, end), last)
        before = after
    return behavior, first, last


@triton.jit(do_not_specialize=["num_users", "num_behaviors", "num_tokens"])
def encode_tokens(
    normalized,  # [N, DP]
    segments,  # [N]
    offsets,
    matrices,
    vectors,
    encoded,  # [T, N, DP] out: u1
    deviations,  # [T, N] out: reciprocal
    num_users,
    num_behaviors,
    num_tokens,
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,
    FP: tl.constexpr,
    HD: tl.constexpr,
    TOKENS: tl.constexpr,
    BH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """u1 of a tile of tokens for one task: for wide rows, ahead of encoder_output_backward."""
    token = tl.arange(0, TOKENS)
    task = tl.program_id(1)
    w1 = matrices + 4 * HD * DP
    tables = vectors + 2 * (FP + DP)
    behavior, first, last = behavior_tile(
        tl.program_id(0), offsets, num_users, num_behaviors, num_tokens, TOKENS
    )
    exists = token < within_tile(last, first, TOKENS)
    live = tl.load(segments + first + token, mask=exists, other=-1) >= 0
    scale0, shift0 = load_norm(tables, task, behavior, 0, num_behaviors, DP)
    u1, rstd1 = encoded_tokens(
        normalized, first, live, scale0, shift0, w1, vectors, w1 + FP * DP, vectors + FP, eps,
        D, DP, FP, BH, TOKENS, COLUMNS, PRECISION,
    )  # fmt: skip
    place = tl.cast(task, tl.int64) * num_tokens + first
    tile = encoded + place * DP + tile_offsets(TOKENS, DP)
    tl.store(tile, u1.to(encoded.dtype.element_ty), mask=exists[:, None])
    tl.store(deviations + place + token, rstd1, mask=exists)


@triton.jit(do_not_specialize=["num_users", "num_behaviors", "num_tasks", "num_tokens"])
def encoder_input_backward(
    normalized,  # [N, DP]
    rstd,  # [N]
    segments,  # [N]
    offsets,
    matrices,
    vectors,
    d_encoded,  # [T, N, DP]
    sums,  # [programs, sums_size] in and out
    gradient,  # [N, DP] float32 out: of x + MHSA(x)
    num_users,
    num_behaviors,
    num_tasks,
    num_tokens,
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
    column = tl.arange(0, DP)
    local = tl.arange(0, ROWS)
    w1 = matrices + 4 * HD * DP
    w2 = w1 + FP * DP
    tables = vectors + 2 * (FP + DP)
    d_tables = sums + tl.program_id(0).to(tl.int64) * sums_size
    d_tables += 2 * (4 * HD + 2 * FP) * DP + 2 * (FP + DP)
    items = tl.cdiv(num_tokens, ROWS) + num_behaviors
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        behavior, first, last = behavior_tile(
            item, offsets, num_users, num_behaviors, num_tokens, ROWS
        )
        exists = local < within_tile(last, first, ROWS)
        live = tl.load(segments + first + local, mask=exists, other=-1) >= 0
        tile = first * DP + tile_offsets(ROWS, DP)
        u0 = tl.load(normalized + tile, mask=live[:, None], other=0.0).to(tl.float32)
        d_u0 = tl.zeros([ROWS, DP], tl.float32)
        for task in range(num_tasks):
            scale0, shift0 = load_norm(tables, task, behavior, 0, num_behaviors, DP)
            x = u0 * scale0[None, :] + shift0[None, :]
            plane = tl.cast(task, tl.int64) * num_tokens * DP
            d_y = tl.load(d_encoded + plane + tile, mask=live[:, None], other=0.0)
            d_x = feed_forward_backward(
                x, d_y.to(tl.float32), w1, vectors, w2, FP, BH, DP, COLUMNS, PRECISION
            )
            row = norm_row(task, behavior, 0, num_behaviors) * DP
            accumulate(d_tables + row + column, tl.sum(d_x * u0, axis=0))
            accumulate(d_tables + row + DP + column, tl.sum(d_x, axis=0))
            d_u0 += d_x * scale0[None, :]
        inverse = tl.load(rstd + first + local, mask=live, other=0.0)
        d_u = layer_norm_backward(d_u0, u0, inverse, column < D, D)
        tl.store(gradient + tile, d_u, mask=exists[:, None])
        # What one thread has added up, another may read next.
        tl.debug_barrier()
