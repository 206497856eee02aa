"""A good engineer's eager code: padded, batched over tasks, self-attention once per behavior."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlfast.jagged import JaggedSequences
from mtlfast.reference import ConditionalTransformerWeights

from .common import Padded, Slots, decoder_tail, feed_forward, normalize, pad, slots


def batched(
    sequences: JaggedSequences | Padded,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-5,
    user_index: Tensor | None = None,
    by_user: Slots | None = None,
) -> Tensor:
    """Encodes every user once. Arguments and result as in ``conditional_interest``; a compiler,
    which cannot see through data, gets ``by_user`` in place of ``user_index``.
    """
    blocks, lengths = pad(sequences)
    num_tasks = scale.shape[0]
    num_users, d = lengths.shape[1], target.shape[1]
    encoder, decoder = weights
    encoder_qkv = torch.cat([encoder.q_proj, encoder.k_proj, encoder.v_proj])
    decoder_kv = torch.cat([decoder.k_proj, decoder.v_proj])

    if by_user is None:
        by_user = slots(user_index, num_users)
    item = target if by_user.candidate is None else target[by_user.candidate]
    query = F.linear(item, decoder.q_proj).view(num_users, 1, by_user.width, num_heads, -1)
    query = query.transpose(2, 3).expand(-1, num_tasks, -1, -1, -1).flatten(0, 1)

    attended = []
    for b, (x, length) in enumerate(zip(blocks, lengths, strict=True)):
        width = x.shape[1]
        # A key that is not there still has to be one, or the softmax of an empty sequence is NaN.
        valid = torch.arange(width, device=x.device) < length.clamp(min=1)[:, None]

        q, k, v = F.linear(x, encoder_qkv).view(num_users, width, 3, num_heads, -1).unbind(2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=valid[:, None, None],
        )
        mixed = F.linear(mixed.transpose(1, 2).reshape(x.shape), encoder.out_proj)
        u0 = normalize(mixed.add_(x), eps)[:, None]  # [U, 1, L, d]
        out0 = torch.addcmul(shift[:, b, 0, None], u0, scale[:, b, 0, None])  # [U, T, L, d]
        u1 = normalize(feed_forward(out0, encoder).add_(out0), eps)
        out_enc = torch.addcmul(shift[:, b, 1, None], u1, scale[:, b, 1, None])

        k, v = F.linear(out_enc, decoder_kv).view(-1, width, 2, num_heads, d // num_heads).unbind(2)
        mixed = F.scaled_dot_product_attention(
            query,
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=valid.repeat_interleave(num_tasks, 0)[:, None, None],
        )  # [U*T, h, c, d_h]
        mixed = mixed.view(num_users, num_tasks, num_heads, by_user.width, -1)
        mixed = mixed.permute(0, 3, 1, 2, 4).flatten(-2)  # [U, c, T, d]
        mixed = mixed.masked_fill((length == 0)[:, None, None, None], 0.0)
        attended.append(F.linear(mixed, decoder.out_proj).flatten(0, 1))

    rows = torch.stack(attended, dim=2)  # [U*c, T, M, d]
    if by_user.slot is not None:
        rows = rows[by_user.slot]
    return decoder_tail(target, rows, decoder, scale, shift, eps)


def repeated(
    sequences: JaggedSequences | Padded,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-5,
    user_index: Tensor | None = None,
) -> Tensor:
    """:func:`batched` that encodes a user's sequences again for each of the user's candidates."""
    padded = pad(sequences)
    if user_index is not None:
        blocks = [block[user_index] for block in padded.blocks]
        padded = Padded(blocks, padded.lengths[:, user_index])
    return batched(padded, target, weights, scale, shift, num_heads=num_heads, eps=eps)
