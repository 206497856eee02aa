"""The sequence of every token."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens", "num_segments", "num_users", "steps"])
def find_segments(
    offsets,  # [M*U+1]
    candidate_begin,  # [U+1], read where SHARED
    segments,  # [N] out: the segment of each token; -1 where no candidate refers to its user
    num_tokens,
    num_segments,
    num_users,
    steps,  # halvings that leave one of num_segments
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = token < num_tokens
    # The last segment that starts at or before the token.
    low = tl.zeros([BLOCK], tl.int64)
    high = tl.zeros([BLOCK], tl.int64) + num_segments
    for _ in range(steps):
        middle = (low + high) // 2
        before = tl.load(offsets + middle, mask=exists, other=0) <= token
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    if SHARED:
        user = low % num_users
        first = tl.load(candidate_begin + user, mask=exists, other=0)
        last = tl.load(candidate_begin + user + 1, mask=exists, other=0)
        low = tl.where(last > first, low, -1)
    tl.store(segments + token, low.to(segments.dtype.element_ty), mask=exists)
