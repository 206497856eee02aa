"""The kernel's algebra in plain PyTorch, without padding: the honest baseline.

Self-attention once per behavior, the decoder's keys absorbed into the query, pooling before the
value projection. Sequences are sorted by length, so that those of equal length form dense blocks:
no padding, no mask, no segment reduction. Blocks are cut so that the hidden layer of the FFN stays
in the cache, which makes this about as fast as eager PyTorch gets; NOTES.md has the alternatives
that were slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlfast.jagged import JaggedSequences
from mtlfast.reference import ConditionalTransformerWeights, TransformerWeights

from .common import decoder_tail, feed_forward, normalize, slots

# Floats of one block's hidden layer. Smaller blocks stay in the cache, larger ones need fewer
# calls, and calls cost more when autograd records them.
HIDDEN_FLOATS = 1 << 20
HIDDEN_FLOATS_TRAINING = 1 << 22
# Up to here two batched products beat scaled_dot_product_attention, which works on blocks of 32.
PRODUCTS_UP_TO = 32


def ragged(
    sequences: JaggedSequences,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-5,
    user_index: Tensor | None = None,
    hidden_floats: int | None = None,
    block_function: Callable[..., Tensor] | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """Every user is encoded once. Arguments and result as in ``conditional_interest``, and:

    Args:
        hidden_floats: size of the FFN's hidden layer of one block of sequences.
        block_function: computes :func:`block` some other way.
        plan: what :func:`make_plan` says of these sequences; with it, nothing is read back from a
            GPU, and the call can be captured in a CUDA graph.
    """
    block_function = block_function or block
    if hidden_floats is None:
        hidden_floats = HIDDEN_FLOATS_TRAINING if torch.is_grad_enabled() else HIDDEN_FLOATS
    num_tasks, num_behaviors = scale.shape[:2]
    num_users, d = sequences.num_users, target.shape[1]
    d_h = d // num_heads
    encoder, decoder = weights
    by_user = slots(user_index, num_users)

    if plan is None:
        per_token = num_tasks * len(encoder.linear1_bias)
        plan = make_plan(sequences, max(hidden_floats // per_token, 1))
    tokens = sequences.values.index_select(0, plan.token)
    segment, behavior, user = plan.segment, plan.behavior, plan.user

    # Keys absorbed into the query: k_i = (e W_Q)_i (W_K^i)^T / sqrt(d_h), for all candidates.
    item = target if by_user.candidate is None else target[by_user.candidate]
    query = F.linear(item, decoder.q_proj).view(-1, num_heads, d_h) / math.sqrt(d_h)
    keys = torch.einsum("nhe,hed->nhd", query, decoder.k_proj.view(num_heads, d_h, d))
    keys = keys.reshape(num_users, by_user.width * num_heads * d).index_select(0, user)

    qkv = torch.cat([encoder.q_proj, encoder.k_proj, encoder.v_proj])
    gain = scale.permute(1, 0, 2, 3).reshape(num_behaviors, -1)
    bias = shift.permute(1, 0, 2, 3).reshape(num_behaviors, -1)
    sizes = [n for n, _ in plan.cuts]
    pooled = [
        block_function(
            x,
            n,
            k.view(n, 1, by_user.width * num_heads, d),
            gain.index_select(0, b).view(n, num_tasks, 4, 1, d),
            bias.index_select(0, b).view(n, num_tasks, 4, 1, d),
            qkv,
            encoder,
            num_heads,
            eps,
        )
        for (n, _), x, k, b in zip(
            plan.cuts,
            tokens.split([n * width for n, width in plan.cuts]),
            keys.split(sizes),
            behavior.split(sizes),
            strict=True,
        )
    ]

    attended = target.new_zeros(num_behaviors * num_users, by_user.width * num_tasks * d)
    if pooled:
        rows = torch.cat(pooled).view(-1, num_tasks, by_user.width, num_heads, d)
        head = torch.einsum("ntchd,hed->ncthe", rows, decoder.v_proj.view(num_heads, d_h, d))
        rows = F.linear(head.flatten(-2), decoder.out_proj)
        attended = attended.index_copy(0, segment, rows.view(len(segment), -1))
    attended = attended.view(num_behaviors, num_users * by_user.width, num_tasks, d)
    attended = attended.permute(1, 2, 0, 3)
    if by_user.slot is not None:
        attended = attended[by_user.slot]
    return decoder_tail(target, attended, decoder, scale, shift, eps)


class Plan(NamedTuple):
    """Which sequences form which blocks: all that depends on the lengths alone."""

    token: Tensor  # [N], the tokens of all segments, shortest segments first
    segment: Tensor  # [S], segments that are not empty, in this order
    behavior: Tensor  # [S]
    user: Tensor  # [S]
    cuts: list[tuple[int, int]]  # blocks of n segments of length L


def make_plan(sequences: JaggedSequences, tokens_of_block: int) -> Plan:
    """Sorts the segments by length and cuts them into blocks of about so many tokens."""
    num_users = max(sequences.num_users, 1)
    length, segment = torch.sort(sequences.lengths().reshape(-1), stable=True)
    num_empty = int((length == 0).sum())
    length, segment = length[num_empty:], segment[num_empty:]
    starts = sequences.offsets[:-1][segment]
    return Plan(
        _token_order(starts, length, len(sequences.values)),
        segment,
        segment // num_users,
        segment % num_users,
        _cuts(length, tokens_of_block),
    )


def block(
    x: Tensor,  # [n*L, d], n sequences of length L
    n: int,
    keys: Tensor,  # [n, 1, c*h, d]
    gain: Tensor,  # [n, T, 4, 1, d]
    bias: Tensor,  # [n, T, 4, 1, d]
    qkv: Tensor,  # [3*d, d]
    encoder: TransformerWeights,
    num_heads: int,
    eps: float,
) -> Tensor:
    """Pooled encoder outputs ``[n, T, c*h, d]`` of sequences of one length."""
    width, d = len(x) // n, x.shape[1]
    q, k, v = F.linear(x, qkv).view(n, width, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    if width == 1:
        mixed = v
    elif width <= PRODUCTS_UP_TO:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        mixed = torch.softmax(scores, dim=-1) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    mixed = F.linear(mixed.transpose(1, 2).reshape(n * width, d), encoder.out_proj)
    u0 = normalize(mixed.add_(x), eps).view(n, 1, width, d)
    out0 = torch.addcmul(bias[:, :, 0], u0, gain[:, :, 0])  # [n, T, L, d]
    u1 = normalize(feed_forward(out0, encoder).add_(out0), eps)
    if width == 1:
        rows = u1.expand(-1, -1, keys.shape[2], -1)
    else:
        # The shift adds the same to all scores of a sequence: it cancels in the softmax.
        rows = torch.softmax((keys * gain[:, :, 1]) @ u1.transpose(-1, -2), dim=-1) @ u1
    return torch.addcmul(bias[:, :, 1], rows, gain[:, :, 1])


def _token_order(start: Tensor, length: Tensor, num_tokens: int) -> Tensor:
    """Rows of the tokens of the segments that start at ``start``, one segment after the other."""
    first = length.cumsum(0) - length
    return torch.arange(num_tokens, device=length.device) + (start - first).repeat_interleave(
        length, output_size=num_tokens
    )


def _cuts(length: Tensor, tokens: int) -> list[tuple[int, int]]:
    """Blocks ``(n, L)`` of equal lengths with about ``tokens`` tokens, covering sorted lengths."""
    cuts = []
    widths, counts = torch.unique_consecutive(length, return_counts=True)
    for width, count in zip(widths.tolist(), counts.tolist(), strict=True):
        most = max(tokens // width, 1)
        cuts += [(min(most, count - at), width) for at in range(0, count, most)]
    return cuts
