"""The pass over the tokens: every task's encoder FFN, scores, online softmax and pooling.

A program takes one (task, behavior) and a few candidates in the order of their users, so that the
tokens they attend to lie behind each other. Nothing of size tokens x tasks is written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .primitives import clamped, feed_forward, finite, layer_norm, product, tile_offsets


@triton.jit
def load_norm(tables, task, behavior, position, num_behaviors, DP: tl.constexpr):
    """Scale and shift [DP] of one norm, from the packed tables [T, M, 4, 2, DP]."""
    column = tl.arange(0, DP)
    at = tables + norm_row(task, behavior, position, num_behaviors) * DP
    return tl.load(at + column), tl.load(at + DP + column)


@triton.jit
def norm_row(task, behavior, position, num_behaviors):
    """Row of a norm's scale in the packed tables; its shift is the next one."""
    return ((task * num_behaviors + behavior) * 4 + position) * 2


@triton.jit
def sequence_of(
    place, local, exists, users, offsets, behavior, num_users, num_tokens, SHARED: tl.constexpr
):
    """First and last token of the sequences at place + local of the candidate list."""
    if SHARED:
        user = clamped(users + place + local, exists, num_users - 1)
    else:
        user = tl.minimum(place + local, num_users - 1)
    first = offsets + tl.cast(behavior, tl.int64) * num_users
    return clamped(first + user, exists, num_tokens), clamped(first + user + 1, exists, num_tokens)


@triton.jit
def encoded_tokens(
    normalized,
    first,
    exists,
    scale0,
    shift0,
    w1,
    b1,
    w2,
    b2,
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,
    FP: tl.constexpr,
    BH: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """u1 and its reciprocal deviation for one task and the tokens from ``first`` on."""
    tile = normalized + tl.cast(first, tl.int64) * DP + tile_offsets(TOKENS, DP)
    u0 = tl.load(tile, mask=exists[:, None], other=0.0).to(tl.float32)
    x = u0 * scale0[None, :] + shift0[None, :]
    u = feed_forward(x, w1, b1, w2, b2, FP, BH, DP, COLUMNS, PRECISION)
    return layer_norm(u, tl.arange(0, DP) < D, exists, D, eps)


@triton.jit
def within_tile(token, first, TOKENS: tl.constexpr):
    """A position among the tokens from ``first`` on, as a small number."""
    return tl.minimum(tl.maximum(token - first, 0), TOKENS).to(tl.int32)


@triton.jit(
    do_not_specialize=["num_candidates", "num_users", "num_behaviors", "num_tasks", "num_tokens"]
)
def encode_and_pool(
    normalized,  # [N, DP]
    queries,  # [B, H, DP]: the absorbed decoder queries, as everything here in order of users
    offsets,  # [M*U+1]
    users,  # [B]: the user of each place of the candidate list; read where SHARED
    matrices,
    vectors,
    pooled,  # [B, T, M, H, DP] out
    statistics,  # [B, T, M, H, 2] out: the softmax's maximum, and 1 over its denominator
    num_candidates,
    num_users,
    num_behaviors,
    num_tasks,
    num_tokens,
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
):
    behavior = tl.program_id(1)
    task = tl.program_id(2)
    dtype: tl.constexpr = matrices.dtype.element_ty
    pairs: tl.constexpr = CANDIDATES * HP
    column = tl.arange(0, DP)
    pair = tl.arange(0, pairs)
    place = tl.program_id(0).to(tl.int64) * CANDIDATES
    local = pair // HP
    head = pair % HP
    present = local < num_candidates - place
    begin, end = sequence_of(
        place, local, present, users, offsets, behavior, num_users, num_tokens, SHARED
    )
    first_token = tl.min(tl.where(end > begin, begin, num_tokens), axis=0)
    last_token = tl.max(tl.where(present, end, 0), axis=0)

    w1 = matrices + 4 * HD * DP
    w2 = w1 + FP * DP
    b1 = vectors
    b2 = b1 + FP
    tables = vectors + 2 * (FP + DP)
    scale0, shift0 = load_norm(tables, task, behavior, 0, num_behaviors, DP)
    scale1, _ = load_norm(tables, task, behavior, 1, num_behaviors, DP)
    real = present & (head < H)
    query = tl.load(
        queries + place * H * DP + (local * H + head)[:, None] * DP + column[None, :],
        mask=real[:, None],
        other=0.0,
    )
    query = (query.to(tl.float32) * scale1[None, :]).to(dtype)

    largest = tl.full([pairs], float("-inf"), tl.float32)
    total = tl.zeros([pairs], tl.float32)
    mixed = tl.zeros([pairs, DP], tl.float32)
    for first in range(first_token, last_token, TOKENS):
        token = tl.arange(0, TOKENS)
        exists = token < within_tile(last_token, first, TOKENS)
        if DP > 64:
            # Read in every turn, as every thread wants many columns of them and has no registers
            # to keep them. Without the barrier the compiler would read them once.
            tl.debug_barrier()
            scale0, shift0 = load_norm(tables, task, behavior, 0, num_behaviors, DP)
        u1, _rstd1 = encoded_tokens(
            normalized, first, exists, scale0, shift0, w1, b1, w2, b2, eps,
            D, DP, FP, BH, TOKENS, COLUMNS, PRECISION,
        )  # fmt: skip
        # A NaN makes its token's scores NaN; what is mixed must not carry it to other sequences.
        key = u1.to(dtype)
        scores = product(query, key, None, COLUMNS, PRECISION)
        own_first = within_tile(begin, first, TOKENS)
        own_last = within_tile(end, first, TOKENS)
        own = (token[None, :] >= own_first[:, None]) & (token[None, :] < own_last[:, None])
        scores = tl.where(own, scores, float("-inf"))
        next_largest = tl.maximum(largest, tl.max(scores, axis=1))
        reference = tl.where(next_largest == float("-inf"), 0.0, next_largest)
        weights = tl.exp(scores - reference[:, None])
        fade = tl.exp(largest - reference)
        total = total * fade + tl.sum(weights, axis=1)
        mixed = mixed * fade[:, None]
        mixed += tl.dot(weights.to(dtype), finite(u1).to(dtype), input_precision=PRECISION)
        largest = next_largest
    inverse = 1.0 / tl.where(total == 0.0, 1.0, total)
    mixed = mixed * inverse[:, None]
    row = ((place * num_tasks + task) * num_behaviors + behavior) * H
    at = local * (num_tasks * num_behaviors * H) + head
    tl.store(
        pooled + row * DP + at[:, None] * DP + column[None, :],
        mixed.to(pooled.dtype.element_ty),
        mask=real[:, None],
    )
    # Kept apart: rounded to one number, they would put one error on all weights of a sequence.
    tl.store(statistics + row * 2 + at * 2, largest, mask=real)
    tl.store(statistics + row * 2 + at * 2 + 1, inverse, mask=real)
