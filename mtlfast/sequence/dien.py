"""DIEN, the evolution of interests along one sequence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences
from mtlfast.sequence.base import SequenceEncoder, padded

__all__ = ["DIEN", "AttentionGRUCell", "GRUKind"]

GRUKind = Literal["augru", "agru", "aigru", "gru"]


class AttentionGRUCell(nn.Module):
    """A GRU cell that attention steers (Zhou et al., AAAI 2019, section 4.3).

    ``h' = h + g (n - h)`` with ``n = tanh(W_n x + r * U_n h)``, ``r = sigmoid(W_r x + U_r h)`` and

    * "augru": ``g = a * sigmoid(W_z x + U_z h)``,
    * "agru": ``g = a``,
    * "aigru": ``g = sigmoid(...)`` and ``a x`` in the place of ``x``,
    * "gru": ``g = sigmoid(...)``, no attention.

    Args:
        width: of input and state.
        kind: as above.
    """

    def __init__(self, width: int, kind: GRUKind = "augru") -> None:
        super().__init__()
        if kind not in ("augru", "agru", "aigru", "gru"):
            raise bad("kind", "augru, agru, aigru or gru", repr(kind))
        self.kind = kind
        self.input = nn.Linear(width, 3 * width)
        self.state = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor, h: Tensor, attention: Tensor) -> Tensor:
        """The next state ``[B, d]`` from ``x [B, d]``, ``h [B, d]`` and attention ``[B, 1]``."""
        if self.kind == "aigru":
            x = attention * x
        reset_x, update_x, new_x = self.input(x).chunk(3, dim=1)
        reset_h, update_h, new_h = self.state(h).chunk(3, dim=1)
        reset = (reset_x + reset_h).sigmoid()
        update = attention if self.kind == "agru" else (update_x + update_h).sigmoid()
        if self.kind == "augru":
            update = attention * update
        new = torch.tanh(new_x + reset * new_h)
        return h + update * (new - h)


class DIEN(SequenceEncoder):
    """A GRU over one behavior, attention to the candidate, a second GRU steered by it.

    ``a_j = softmax_j(h_j W e)`` over the real tokens; the result is the second GRU's last state,
    zero for an empty sequence (Zhou et al., AAAI 2019). Without the auxiliary loss.

    Args:
        embed_dim: ``d``.
        behavior: which of the ``M``.
        gru: how attention steers the second GRU, see :class:`AttentionGRUCell`.
    """

    def __init__(self, embed_dim: int, *, behavior: int = 0, gru: GRUKind = "augru") -> None:
        super().__init__(embed_dim, embed_dim)
        self.behavior = behavior
        self.extraction = nn.GRU(embed_dim, embed_dim, batch_first=True)
        self.attention = nn.Linear(embed_dim, embed_dim, bias=False)
        self.evolution = AttentionGRUCell(embed_dim, gru)

    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        tokens, real = padded(sequences, self.behavior)
        h = torch.zeros_like(target)
        if not len(target):
            return h
        interests, _ = self.extraction(tokens)
        scores = (interests * self.attention(target).unsqueeze(1)).sum(dim=2)
        lowest = torch.finfo(scores.dtype).min
        attention = scores.masked_fill(~real, lowest).softmax(dim=1)
        for j in range(tokens.shape[1]):
            after = self.evolution(interests[:, j], h, attention[:, j : j + 1])
            h = torch.where(real[:, j : j + 1], after, h)
        return h
