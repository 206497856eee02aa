"""One full transformer per pair of task and behavior, on padded tensors: a paper's code."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlfast.jagged import JaggedSequences
from mtlfast.reference import ConditionalTransformerWeights, TransformerWeights

from .common import Padded, pad


def naive(
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
    """A loop over the ``T x M`` pairs. Arguments and result as in ``conditional_interest``."""
    blocks, lengths = pad(sequences)
    if user_index is not None:
        blocks = [block[user_index] for block in blocks]
        lengths = lengths[:, user_index]
    num_tasks, num_behaviors = scale.shape[:2]
    interests = [
        torch.stack(
            [
                _transformer(
                    blocks[b], lengths[b], target, weights, scale[t, b], shift[t, b], num_heads, eps
                )
                for b in range(num_behaviors)
            ],
            dim=1,
        )
        for t in range(num_tasks)
    ]
    return torch.stack(interests, dim=1)


def _transformer(
    x: Tensor,
    length: Tensor,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    num_heads: int,
    eps: float,
) -> Tensor:
    """DTRN (CIKM 2023) Eq. 3-8 for one pair: ``[B, d]`` from ``x [B, L, d]``, tables ``[4, d]``."""
    empty = length == 0
    # A key that is not there still has to be one, or the softmax of an empty sequence is NaN.
    padding = torch.arange(x.shape[1]) >= length.clamp(min=1)[:, None]

    def norm(u: Tensor, position: int) -> Tensor:
        return F.layer_norm(u, u.shape[-1:], scale[position], shift[position], eps)

    out0 = norm(x + _attention(x, x, padding, weights.encoder, num_heads), 0)
    out_enc = norm(out0 + _feed_forward(out0, weights.encoder), 1)
    attended = _attention(target[:, None], out_enc, padding, weights.decoder, num_heads)[:, 0]
    out3 = norm(target + attended.masked_fill(empty[:, None], 0.0), 2)
    return norm(out3 + _feed_forward(out3, weights.decoder), 3)


def _feed_forward(x: Tensor, layer: TransformerWeights) -> Tensor:
    hidden = F.relu(F.linear(x, layer.linear1_weight, layer.linear1_bias))
    return F.linear(hidden, layer.linear2_weight, layer.linear2_bias)


def _attention(
    queries: Tensor, keys_values: Tensor, padding: Tensor, layer: TransformerWeights, num_heads: int
) -> Tensor:
    def heads(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight).unflatten(-1, (num_heads, -1)).transpose(1, 2)

    q = heads(queries, layer.q_proj)
    k = heads(keys_values, layer.k_proj)
    v = heads(keys_values, layer.v_proj)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    probabilities = torch.softmax(scores.masked_fill(padding[:, None, None], -math.inf), dim=-1)
    return F.linear((probabilities @ v).transpose(1, 2).flatten(2), layer.out_proj)
