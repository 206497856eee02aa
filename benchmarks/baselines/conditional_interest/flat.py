"""Ragged tokens and segment operations: how the kernel's algebra is usually written in PyTorch.

The same algebra as ``ragged.py``. Self-attention is padded within buckets of similar lengths; the
decoder's softmax and pooling are scatter and segment reductions over the flat tokens. Slower than
blocks of equal lengths, above all backward, and kept to show by how much.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlfast.jagged import JaggedSequences
from mtlfast.reference import ConditionalTransformerWeights

from .common import decoder_tail, feed_forward, normalize, slots

_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)


def ragged_flat(
    sequences: JaggedSequences,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-5,
    user_index: Tensor | None = None,
) -> Tensor:
    """Every user is encoded once. Arguments and result as in ``conditional_interest``."""
    num_tasks = scale.shape[0]
    num_users, d = sequences.num_users, target.shape[1]
    d_h = d // num_heads
    encoder, decoder = weights
    lengths = sequences.lengths()
    by_user = slots(user_index, num_users)

    x = sequences.values
    mixed = _self_attention(sequences, encoder.q_proj, encoder.k_proj, encoder.v_proj, num_heads)
    u0 = normalize(F.linear(mixed, encoder.out_proj) + x, eps)

    item = target if by_user.candidate is None else target[by_user.candidate]
    query = F.linear(item, decoder.q_proj).view(-1, num_heads, d_h) / math.sqrt(d_h)
    keys = torch.einsum("nhe,hed->nhd", query, decoder.k_proj.view(num_heads, d_h, d))
    keys = keys.reshape(num_users, by_user.width * num_heads, d)

    sizes = lengths.sum(1).tolist()
    attended = []
    for b, (tokens, length) in enumerate(zip(u0.split(sizes), lengths, strict=True)):
        user = torch.repeat_interleave(torch.arange(num_users), length, output_size=sizes[b])
        out0 = torch.addcmul(shift[:, b, 0, None], tokens, scale[:, b, 0, None])  # [T, S, d]
        u1 = normalize(feed_forward(out0, encoder).add_(out0), eps).transpose(0, 1)  # [S, T, d]
        scores = (u1 * scale[:, b, 1]) @ keys.index_select(0, user).transpose(1, 2)  # [S, T, c*h]
        weight = _segment_softmax(scores, user, num_users)
        products = (weight[..., None] * u1[:, :, None]).flatten(1)
        pooled = torch.segment_reduce(products, "sum", lengths=length, unsafe=True)
        pooled = pooled.view(num_users, num_tasks, by_user.width, num_heads, d)
        rows = torch.addcmul(shift[:, b, 1, None, None], pooled, scale[:, b, 1, None, None])
        head = torch.einsum("ntchd,hed->ncthe", rows, decoder.v_proj.view(num_heads, d_h, d))
        rows = F.linear(head.flatten(-2), decoder.out_proj)  # [U, c, T, d]
        attended.append(rows.masked_fill((length == 0)[:, None, None, None], 0.0).flatten(0, 1))

    stacked = torch.stack(attended, dim=2)
    if by_user.slot is not None:
        stacked = stacked[by_user.slot]
    return decoder_tail(target, stacked, decoder, scale, shift, eps)


def _self_attention(
    sequences: JaggedSequences, w_q: Tensor, w_k: Tensor, w_v: Tensor, num_heads: int
) -> Tensor:
    """Heads of every token's self-attention ``[N, d]``, padded within buckets of lengths."""
    x = sequences.values
    num_tokens, d = x.shape
    qkv = F.linear(x, torch.cat([w_q, w_k, w_v])).view(num_tokens, 3, num_heads, d // num_heads)
    length, segment = torch.sort(sequences.lengths().reshape(-1), stable=True)
    starts = sequences.offsets[:-1][segment]
    edges = torch.tensor([0, *_BUCKETS, max(sequences.max_len, _BUCKETS[-1] + 1)])
    cuts = torch.searchsorted(length, edges, right=True).tolist()
    rows, heads = [], []
    for first, last in itertools.pairwise(cuts):
        if first == last:
            continue
        width = int(length[last - 1])
        valid = torch.arange(width) < length[first:last, None]
        index = (starts[first:last, None] + torch.arange(width)).clamp(max=num_tokens - 1)
        q, k, v = (
            qkv.index_select(0, index.flatten()).view(*index.shape, 3, num_heads, -1).unbind(2)
        )
        mask = None if int(length[first]) == width else valid[:, None, None]
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        )
        rows.append(index[valid])
        heads.append(mixed.transpose(1, 2)[valid])
    if not rows:
        return x
    return torch.zeros_like(x).index_copy(0, torch.cat(rows), torch.cat(heads).reshape(-1, d))


def _segment_softmax(scores: Tensor, user: Tensor, num_users: int) -> Tensor:
    """Softmax over the tokens of each user; ``scores [S, ...]``."""
    index = user.view(-1, *[1] * (scores.dim() - 1)).expand_as(scores)
    shape = (num_users, *scores.shape[1:])
    most = scores.new_full(shape, -math.inf).scatter_reduce(0, index, scores.detach(), "amax")
    weight = (scores - most.index_select(0, user)).exp()
    total = scores.new_zeros(shape).index_add(0, user, weight)
    return weight / total.index_select(0, user)
