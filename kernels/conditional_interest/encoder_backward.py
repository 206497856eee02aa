"""Gradients of the pass over the tokens. Everything is computed again from u0, tile by tile.

A program takes all tasks of one behavior for a few users, with all their tokens and all their
candidates, so that no two programs add to the same row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .encoder import encoded_tokens, load_norm, norm_row, user_of
from .primitives import accumulate, clamped, feed_forward_backward, finite, layer_norm_backward


@triton.jit
def pooling_backward(
    u1,
    row,
    first_place,
    last_place,
    behavior,
    task,
    scale1,
    queries,
    d_pooled,
    log_sums,
    inner,
    offsets,
    order,
    user_index,
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
    PRECISION: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Gradient of a tile of u1, and the part of scale1's that comes by the scores.

    What is not finite enters the products as zero: the softmax statistics of the same candidate
    carry it to where it belongs.
    """
    dtype: tl.constexpr = queries.dtype.element_ty
    pairs: tl.constexpr = CANDIDATES * HP
    column = tl.arange(0, DP)
    pair = tl.arange(0, pairs)
    head = pair % HP
    key = finite(u1).to(dtype)
    d_u1 = tl.zeros_like(u1)
    d_scale1 = tl.zeros([DP], tl.float32)
    for place in range(first_place, last_place, CANDIDATES):
        position = tl.cast(place, tl.int64) + pair // HP
        exists = position < last_place
        candidate, user = user_of(position, exists, order, user_index, num_users, SHARED)
        segment = tl.cast(behavior, tl.int64) * num_users + user
        begin = clamped(offsets + segment, exists, num_tokens)
        end = clamped(offsets + segment + 1, exists, num_tokens)
        real = exists & (head < H)
        absorbed = tl.load(
            queries + (candidate * H + head)[:, None] * DP + column[None, :],
            mask=real[:, None],
            other=0.0,
        ).to(tl.float32)
        query = finite(absorbed * scale1[None, :]).to(dtype)
        at = ((candidate * num_tasks + task) * num_behaviors + behavior) * H + head
        upstream = tl.load(
            d_pooled + at[:, None] * DP + column[None, :], mask=real[:, None], other=0.0
        )
        upstream = finite(upstream.to(tl.float32)).to(dtype)
        log_sum = tl.load(log_sums + at, mask=real, other=0.0)
        along = tl.load(inner + at, mask=real, other=0.0)

        own = (row[None, :] >= begin[:, None]) & (row[None, :] < end[:, None]) & real[:, None]
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        weights = tl.where(own, tl.exp(scores - log_sum[:, None]), 0.0)
        d_weights = tl.dot(upstream, tl.trans(key), input_precision=PRECISION)
        d_scores = tl.where(own, weights * (d_weights - along[:, None]), 0.0).to(dtype)
        d_u1 += tl.dot(tl.trans(weights.to(dtype)), upstream, input_precision=PRECISION)
        d_u1 += tl.dot(tl.trans(d_scores), query, input_precision=PRECISION)
        d_query = tl.dot(d_scores, key, input_precision=PRECISION)
        d_scale1 += tl.sum(d_query * absorbed, axis=0)
        place_of = (tl.cast(behavior, tl.int64) * num_candidates + candidate) * H + head
        pointers = d_queries + place_of[:, None] * DP + column[None, :]
        before = tl.load(pointers, mask=real[:, None], other=0.0)
        tl.store(pointers, before + d_query * scale1[None, :], mask=real[:, None])
    return d_u1, d_scale1


@triton.jit(
    do_not_specialize=[
        "num_candidates", "num_users", "num_behaviors", "num_tasks", "num_tokens", "sums_size"
    ]
)  # fmt: skip
def encoder_backward(
    normalized,  # [N, DP]
    segments,  # [N]
    queries,  # [B, H, DP]
    d_pooled,  # [B, T, M, H, DP]
    log_sums,  # [B, T, M, H]
    inner,  # [B, T, M, H]
    offsets,
    order,
    user_index,
    candidate_begin,  # [U+1]; read where SHARED
    matrices,
    vectors,
    sums,  # [programs, sums_size] in and out
    d_queries,  # [M, B, H, DP] in (zeros) and out
    d_normalized,  # [N, DP] float32 out
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
    PRECISION: tl.constexpr,
    SHARED: tl.constexpr,
):
    side: tl.constexpr = (4 * HD + 2 * FP) * DP
    column = tl.arange(0, DP)
    w1 = matrices + 4 * HD * DP
    w2 = w1 + FP * DP
    b1 = vectors
    b2 = b1 + FP
    tables = vectors + 2 * (FP + DP)
    mine = sums + tl.program_id(0).to(tl.int64) * sums_size
    d_w1 = mine + 4 * HD * DP
    d_w2 = d_w1 + FP * DP
    d_b1 = mine + 2 * side
    d_b2 = d_b1 + FP
    d_tables = mine + 2 * side + 2 * (FP + DP)

    tiles = tl.cdiv(num_users, CANDIDATES)
    for item_of_work in range(tl.program_id(0), tiles * num_behaviors, tl.num_programs(0)):
        behavior = item_of_work // tiles
        first_user = (item_of_work % tiles) * CANDIDATES
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
            scale0, shift0 = load_norm(tables, task, behavior, 0, num_behaviors, DP)
            scale1, _ = load_norm(tables, task, behavior, 1, num_behaviors, DP)
            d_scale0 = tl.zeros([DP], tl.float32)
            d_shift0 = tl.zeros([DP], tl.float32)
            d_scale1 = tl.zeros([DP], tl.float32)
            for first in range(first_token, last_token, TOKENS):
                row = first + tl.arange(0, TOKENS)
                exists = row < last_token
                live = exists
                if SHARED:
                    live = tl.load(segments + row, mask=exists, other=-1) >= 0
                u0, x, u1, rstd1 = encoded_tokens(
                    normalized, row, live, scale0, shift0, w1, b1, w2, b2, eps,
                    D, DP, FP, BH, PRECISION,
                )  # fmt: skip
                gradient, by_scores = pooling_backward(
                    u1, row, first_place, last_place, behavior, task, scale1, queries, d_pooled,
                    log_sums, inner, offsets, order, user_index, d_queries, num_candidates,
                    num_users, num_behaviors, num_tasks, num_tokens,
                    H, DP, HP, CANDIDATES, PRECISION, SHARED,
                )  # fmt: skip
                d_scale1 += by_scores
                gradient = layer_norm_backward(gradient, u1, rstd1, column < D, D)
                gradient = feed_forward_backward(
                    x, gradient, w1, b1, w2, d_w1, d_b1, d_w2, d_b2, FP, BH, DP, PRECISION
                )
                d_scale0 += tl.sum(gradient * u0, axis=0)
                d_shift0 += tl.sum(gradient, axis=0)
                pointers = d_normalized + row[:, None] * DP + column[None, :]
                before = tl.load(pointers, mask=exists[:, None] & (task > 0), other=0.0)
                tl.store(pointers, before + gradient * scale0[None, :], mask=exists[:, None])
                # What one thread has added up, another may read next.
                tl.debug_barrier()
            d_table0 = d_tables + norm_row(task, behavior, 0, num_behaviors) * DP
            accumulate(d_table0 + column, d_scale0)
            accumulate(d_table0 + DP + column, d_shift0)
            d_table1 = d_tables + norm_row(task, behavior, 1, num_behaviors) * DP
            accumulate(d_table1 + column, d_scale1)
