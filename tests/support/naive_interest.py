"""``conditional_interest`` a second time, as a paper's code would have it: padded, pair by pair.

Shares nothing with the package but the containers, so that a slip in the reference shows.
"""

from __future__ import annotations

import torch
from interest_cases import Case
from torch import Tensor
from torch.nn import functional as F

from mtlfast.reference import TransformerWeights


def naive_interest(case: Case, extra_columns: int = 0) -> Tensor:
    """``[B, T, M, d]``; ``extra_columns`` widens the padding, which must change nothing."""
    values, target = case.tensors["values"], case.tensors["target"]
    scale, shift = case.tensors["scale"], case.tensors["shift"]
    offsets, num_behaviors = case.offsets.tolist(), case.num_behaviors
    num_candidates, d = target.shape
    num_users = (len(offsets) - 1) // num_behaviors
    users = range(num_candidates) if case.user_index is None else case.user_index.tolist()

    rows = []
    for t in range(scale.shape[0]):
        for b in range(num_behaviors):
            segments = [b * num_users + user for user in users]
            pieces = [values[offsets[s] : offsets[s + 1]] for s in segments]
            width = max([len(piece) for piece in pieces], default=0) + extra_columns
            padded = [torch.cat([p, p.new_full((width - len(p), d), 7.0)]) for p in pieces]
            x = torch.stack(padded) if padded else values.new_zeros(0, width, d)
            lengths = torch.tensor([len(piece) for piece in pieces], dtype=torch.int64)
            valid = torch.arange(width) < lengths[:, None]
            rows.append(_pair(case, x, valid, target, scale[t, b], shift[t, b]))
    shape = (scale.shape[0], num_behaviors, num_candidates, d)
    return torch.stack(rows).view(shape).permute(2, 0, 1, 3)


def _pair(
    case: Case, x: Tensor, valid: Tensor, item: Tensor, gamma: Tensor, beta: Tensor
) -> Tensor:
    """One task and behavior: x ``[B, L, d]``, item ``[B, d]``, gamma and beta ``[4, d]``."""

    def cln(u: Tensor, position: int) -> Tensor:
        mean = u.mean(-1, keepdim=True)
        variance = ((u - mean) ** 2).mean(-1, keepdim=True)
        return gamma[position] * ((u - mean) / torch.sqrt(variance + case.eps)) + beta[position]

    encoder, decoder = case.weights
    out0 = cln(x + _attention(x, x, valid, encoder, case.num_heads), 0)
    out_enc = cln(out0 + _ffn(out0, encoder), 1)
    attended = _attention(item[:, None], out_enc, valid, decoder, case.num_heads)[:, 0]
    out3 = cln(item + attended, 2)
    return cln(out3 + _ffn(out3, decoder), 3)


def _attention(
    queries: Tensor, keys: Tensor, valid: Tensor, weights: TransformerWeights, num_heads: int
) -> Tensor:
    head = queries.shape[-1] // num_heads
    heads = []
    for i in range(num_heads):
        part = slice(i * head, (i + 1) * head)
        q = queries @ weights.q_proj[part].T
        k = keys @ weights.k_proj[part].T
        v = keys @ weights.v_proj[part].T
        scores = torch.einsum("bqe,bke->bqk", q, k) / head**0.5
        scores = scores.masked_fill(~valid[:, None], float("-inf"))
        # A row without keys is softmax over nothing: NaN by the formula, zero by definition.
        nothing = ~valid.any(1)[:, None, None]
        alpha = torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
        heads.append(torch.einsum("bqk,bke->bqe", alpha, v))
    return torch.cat(heads, -1) @ weights.out_proj.T


def _ffn(u: Tensor, weights: TransformerWeights) -> Tensor:
    hidden = F.relu(u @ weights.linear1_weight.T + weights.linear1_bias)
    return hidden @ weights.linear2_weight.T + weights.linear2_bias
