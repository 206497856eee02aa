"""BST, ATRank and DFN: self-attention in padded batches, as their papers have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences
from mtlfast.sequence.base import SequenceEncoder, padded

__all__ = ["BST", "DFN", "ATRank", "attend", "check_heads"]

Readout = Literal["target", "mean", "concat"]

_BUCKETS = 12


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor,
    heads: int,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention ``[B, Q, d]`` over the real ones of ``L`` keys; zero without any.

    ``dropout`` is a probability on the attention weights; 0 outside training is the caller's
    affair.
    """

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    # A row without keys attends to all of them, and is set to zero afterwards.
    some = real.any(dim=1)
    mask = (real | ~some.unsqueeze(1))[:, None, None, :]
    found = F.scaled_dot_product_attention(
        split(query), split(key), split(value), attn_mask=mask, dropout_p=dropout
    )
    return found.transpose(1, 2).flatten(2) * some[:, None, None].to(found.dtype)


def check_heads(width: int, num_heads: int, name: str = "embed_dim") -> None:
    """Refuse heads that do not divide the width."""
    if num_heads < 1 or width % num_heads:
        raise bad("num_heads", f"a divisor of {name} = {width}", num_heads)


class BST(SequenceEncoder):
    """A transformer over one behavior with the candidate as its last token (Chen et al., 2019).

    Learned positions, counted from the oldest token, are added or concatenated; the candidate's is
    the next after the last. One post-norm block with LeakyReLU. An empty sequence leaves the
    candidate alone.

    Args:
        embed_dim: ``d``.
        max_length: longest sequence that can come.
        behavior: which of the ``M``.
        num_heads: attention heads, a divisor of ``d``.
        ffn_dim: hidden width of the feed-forward network; ``4 d`` when None.
        readout: the candidate's own row ("target"), the mean over all rows ("mean"), or all of them
            ("concat"): the candidate's, then those of the tokens from the oldest on, then zeros, as
            many rows as ``max_length + 1``.
        combine_positions: "add", or "concat" for a block of width ``2 d`` on tokens and positions.
        dropout: probability after attention and after the feed-forward network.
    """

    def __init__(
        self,
        embed_dim: int,
        max_length: int,
        *,
        behavior: int = 0,
        num_heads: int = 2,
        ffn_dim: int | None = None,
        readout: Readout = "target",
        combine_positions: Literal["add", "concat"] = "add",
        dropout: float = 0.0,
    ) -> None:
        if readout not in ("target", "mean", "concat"):
            raise bad("readout", "target, mean or concat", repr(readout))
        if combine_positions not in ("add", "concat"):
            raise bad("combine_positions", "add or concat", repr(combine_positions))
        width = embed_dim if combine_positions == "add" else 2 * embed_dim
        super().__init__(embed_dim, width * (max_length + 1 if readout == "concat" else 1))
        check_heads(embed_dim, num_heads)
        ffn_dim = 4 * embed_dim if ffn_dim is None else ffn_dim
        self.combine_positions = combine_positions
        self.behavior, self.num_heads, self.readout = behavior, num_heads, readout
        self.max_length = max_length
        self.positions = nn.Parameter(torch.empty(max_length + 1, embed_dim))
        nn.init.normal_(self.positions, std=0.01)
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.linear1, self.linear2 = nn.Linear(width, ffn_dim), nn.Linear(ffn_dim, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        tokens, real = padded(sequences, self.behavior)
        length = tokens.shape[1]
        if length > self.max_length:
            raise bad("sequences", f"at most {self.max_length} tokens", length)
        last = self.positions[real.sum(dim=1)]
        # The candidate comes first in memory, where every row has it in the same place.
        x = torch.cat((target.unsqueeze(1), tokens), dim=1)
        rest = self.positions[:length].expand(len(target), -1, -1)
        places = torch.cat((last.unsqueeze(1), rest), dim=1)
        x = x + places if self.combine_positions == "add" else torch.cat((x, places), dim=2)
        real = F.pad(real, (1, 0), value=True)
        query, key, value = self.in_proj(x).chunk(3, dim=2)
        attended = self.out_proj(attend(query, key, value, real, self.num_heads))
        x = self.norm1(x + self.dropout(attended))
        hidden = self.linear2(F.leaky_relu(self.linear1(x)))
        x = self.norm2(x + self.dropout(hidden))
        if self.readout == "target":
            return x[:, 0]
        weights = real.unsqueeze(2).to(x.dtype)
        if self.readout == "concat":
            return F.pad(x * weights, (0, 0, 0, self.max_length - length)).flatten(1)
        return (x * weights).sum(dim=1) / weights.sum(dim=1)


class _ATRankBlock(nn.Module):
    """Attention with rectified projections, residual, norm; the same with a narrow FFN."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        narrow = max(width // 4, 1)
        self.linear1, self.linear2 = nn.Linear(width, narrow), nn.Linear(narrow, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, real: Tensor) -> Tensor:
        """``x [B, Q, w]`` attends to ``memory [B, L, w]``."""
        query, key, value = self.query(x), self.key(memory), self.value(memory)
        found = attend(
            query.relu(),
            key.relu(),
            value.relu(),
            real,
            self.num_heads,
            dropout=self.dropout if self.training else 0.0,
        )
        x = self.norm1(x + found)
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class ATRank(SequenceEncoder):
    """Self-attention over the union of all behaviors, then attention from the candidate.

    Zhou et al., AAAI 2018. A token becomes ``x W_b + c_{b,k}``: the projection of its behavior, and
    a vector of the behavior and of a bucket ``k`` of its age. The paper's bucket is of time; here,
    without timestamps, ``k = floor(log2(place from the end))``, of 12. Zero where all sequences are
    empty.

    Args:
        embed_dim: ``d``.
        num_behaviors: ``M``.
        width: of attention and result; ``2 d`` when None (the authors' code: 256).
        num_heads: attention heads, a divisor of ``width``.
        dropout: probability on attention weights (the authors' code: 0.1).
    """

    def __init__(
        self,
        embed_dim: int,
        num_behaviors: int,
        *,
        width: int | None = None,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        width = 2 * embed_dim if width is None else width
        super().__init__(embed_dim, width)
        check_heads(width, num_heads, "width")
        self.num_behaviors = num_behaviors
        self.projections = nn.ModuleList(
            nn.Linear(embed_dim, width, bias=False) for _ in range(num_behaviors)
        )
        self.buckets = nn.Parameter(torch.empty(num_behaviors, _BUCKETS, width))
        nn.init.normal_(self.buckets, std=0.01)
        self.item = nn.Linear(embed_dim, width)
        self.encoder = _ATRankBlock(width, num_heads, dropout)
        self.decoder = _ATRankBlock(width, num_heads, dropout)

    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        parts, masks = [], []
        for b, projection in enumerate(self.projections):
            tokens, real = padded(sequences, b)
            columns = torch.arange(tokens.shape[1], device=tokens.device)
            from_end = (real.sum(dim=1, keepdim=True) - columns).clamp(min=1)  # 1 for the newest
            bucket = from_end.double().log2().floor().long().clamp(max=_BUCKETS - 1)
            parts.append(projection(tokens) + self.buckets[b][bucket])
            masks.append(real)
        union, real = torch.cat(parts, dim=1), torch.cat(masks, dim=1)
        union = self.encoder(union, union, real)
        found = self.decoder(self.item(target).unsqueeze(1), union, real).squeeze(1)
        return found * real.any(dim=1, keepdim=True).to(found.dtype)


class _DFNInner(nn.Module):
    """Self-attention over the candidate and one behavior, FFN, mean or sum over the real rows."""

    def __init__(self, width: int, num_heads: int, pooling: Literal["mean", "sum"]) -> None:
        super().__init__()
        self.pooling = pooling
        self.num_heads = num_heads
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, real: Tensor, target: Tensor) -> Tensor:
        x = torch.cat((target.unsqueeze(1), tokens), dim=1)
        real = F.pad(real, (1, 0), value=True)
        query, key, value = self.in_proj(x).chunk(3, dim=2)
        found = attend(query, key, value, real, self.num_heads)
        found = self.linear2(self.linear1(found).relu())
        weights = real.unsqueeze(2).to(found.dtype)
        total = (found * weights).sum(dim=1)
        return total if self.pooling == "sum" else total / weights.sum(dim=1)


class _DFNOuter(nn.Module):
    """What a strong behavior's vector finds among the tokens of a weak one."""

    def __init__(self, width: int, hidden: int = 32) -> None:
        super().__init__()
        self.scores = nn.Sequential(nn.Linear(4 * width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, query: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        f = query.unsqueeze(1).expand_as(tokens)
        scores = self.scores(torch.cat((f, tokens, f * tokens, f - tokens), dim=2)).squeeze(2)
        scores = scores / tokens.shape[2] ** 0.5
        weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=1)
        return ((weights * real.to(weights.dtype)).unsqueeze(2) * tokens).sum(dim=1)


class DFN(SequenceEncoder):
    """Strong feedback picks from weak feedback (DFN, also DeepFeed, Xie et al., IJCAI 2020).

    Every behavior gives a vector by self-attention with the candidate; every strong behavior's
    vector attends to the tokens of every weak one. The result holds all of them, the ``M`` vectors
    first; what attends to an empty sequence finds zero.

    Args:
        embed_dim: ``d``.
        num_behaviors: ``M``.
        weak: the behaviors with weak feedback, such as those shown and not clicked.
        num_heads: attention heads, a divisor of ``d``.
        pooling: a behavior's vector is the "mean" of its rows, or their "sum" as in the authors'
            code.
    """

    def __init__(
        self,
        embed_dim: int,
        num_behaviors: int,
        *,
        weak: Sequence[int] = (),
        num_heads: int = 2,
        pooling: Literal["mean", "sum"] = "mean",
    ) -> None:
        if pooling not in ("mean", "sum"):
            raise bad("pooling", "mean or sum", repr(pooling))
        if any(not 0 <= b < num_behaviors for b in weak) or len(set(weak)) != len(weak):
            raise bad("weak", f"distinct behaviors in [0, {num_behaviors})", list(weak))
        strong = [b for b in range(num_behaviors) if b not in weak]
        super().__init__(embed_dim, (num_behaviors + len(strong) * len(weak)) * embed_dim)
        check_heads(embed_dim, num_heads)
        self.pairs = [(p, u) for p in strong for u in weak]
        self.inner = nn.ModuleList(
            _DFNInner(embed_dim, num_heads, pooling) for _ in range(num_behaviors)
        )
        self.outer = nn.ModuleList(_DFNOuter(embed_dim) for _ in self.pairs)

    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        parts = [padded(sequences, b) for b in range(len(self.inner))]
        own = [
            inner(tokens, real, target)
            for inner, (tokens, real) in zip(self.inner, parts, strict=True)
        ]
        found = [
            outer(own[p], *parts[u]) for outer, (p, u) in zip(self.outer, self.pairs, strict=True)
        ]
        return torch.cat((*own, *found), dim=1)
