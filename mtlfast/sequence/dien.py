"""DIEN, the evolution of interests along one sequence."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast._checks import check_weight
from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences
from mtlfast.sequence.base import SequenceEncoder, padded

__all__ = ["DIEN", "AttentionGRUCell", "AuxiliaryScore", "GRUKind"]

GRUKind = Literal["augru", "agru", "aigru", "gru"]
AuxiliaryScore = Literal["inner", "mlp"]


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
    zero for an empty sequence (Zhou et al., AAAI 2019). With ``auxiliary_weight`` the first GRU's
    states also learn to tell the token that follows from one that does not, see
    :func:`next_token_loss`; without it (the default here) that loss is not computed.

    Args:
        embed_dim: ``d``.
        behavior: which of the ``M``.
        gru: how attention steers the second GRU, see :class:`AttentionGRUCell`.
        auxiliary_weight: of the auxiliary loss in :meth:`extra_loss`; 0 leaves it out.
        auxiliary_score: what it scores a state ``h`` and a token ``x`` with: "inner" is their
            product (the paper), "mlp" a network of widths 100 and 50 on ``h || x`` (the authors'
            code).
        negative_behavior: the behavior whose tokens, drawn anew at every step from the same user's,
            are the negatives; a user without any takes those of None. None draws from the tokens
            that the users of the batch have in ``behavior``.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        behavior: int = 0,
        gru: GRUKind = "augru",
        auxiliary_weight: float = 0.0,
        auxiliary_score: AuxiliaryScore = "inner",
        negative_behavior: int | None = None,
    ) -> None:
        super().__init__(embed_dim, embed_dim)
        check_weight("auxiliary_weight", auxiliary_weight)
        if auxiliary_score not in ("inner", "mlp"):
            raise bad("auxiliary_score", "inner or mlp", repr(auxiliary_score))
        self.behavior = behavior
        self.extraction = nn.GRU(embed_dim, embed_dim, batch_first=True)
        self.attention = nn.Linear(embed_dim, embed_dim, bias=False)
        self.evolution = AttentionGRUCell(embed_dim, gru)
        self.auxiliary_weight = auxiliary_weight
        self.negative_behavior = negative_behavior
        self.auxiliary: nn.Module | None = None
        if auxiliary_weight and auxiliary_score == "mlp":
            self.auxiliary = nn.Sequential(
                *(nn.Linear(2 * embed_dim, 100), nn.Sigmoid()),
                *(nn.Linear(100, 50), nn.Sigmoid(), nn.Linear(50, 1)),
            )
        self._auxiliary_loss: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the loss that waits for :meth:`extra_loss`."""
        return {**self.__dict__, "_auxiliary_loss": None}

    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        tokens, real = padded(sequences, self.behavior)
        h = torch.zeros_like(target)
        self._auxiliary_loss = None
        if not len(target):
            return h
        interests, _ = self.extraction(tokens)
        if self.training and self.auxiliary_weight and len(sequences.values):
            rows = draw_negatives(
                sequences, self.behavior, self.negative_behavior, tokens.shape[1] - 1
            )
            negatives = sequences.values[rows]
            self._auxiliary_loss = next_token_loss(
                interests, tokens, negatives, real, self.auxiliary
            )
        scores = (interests * self.attention(target).unsqueeze(1)).sum(dim=2)
        lowest = torch.finfo(scores.dtype).min
        attention = scores.masked_fill(~real, lowest).softmax(dim=1)
        for j in range(tokens.shape[1]):
            after = self.evolution(interests[:, j], h, attention[:, j : j + 1])
            h = torch.where(real[:, j : j + 1], after, h)
        return h

    def extra_loss(self) -> Tensor | None:
        loss, self._auxiliary_loss = self._auxiliary_loss, None
        return None if loss is None or not self.training else self.auxiliary_weight * loss


def next_token_loss(
    states: Tensor, tokens: Tensor, negatives: Tensor, real: Tensor, score: nn.Module | None = None
) -> Tensor:
    """DIEN's auxiliary loss (Zhou et al., AAAI 2019, Eq. 4 and 6), in float32 at least.

    The mean of ``-log sigmoid(s(h_j, x_{j+1})) - log(1 - sigmoid(s(h_j, n_{j+1})))`` over all ``j``
    whose token ``j + 1`` is real; 0 where there is none.

    Args:
        states: ``[B, L, d]``, of the first GRU; ``h_j`` has seen the tokens ``0 ... j``.
        tokens: ``[B, L, d]``.
        negatives: ``[B, L - 1, d]``, one for every token but the first.
        real: bool ``[B, L]``, which tokens are; a prefix of each row.
        score: gives ``[..., 1]`` from ``[..., 2 d]``; the inner product when None.
    """

    def of(others: Tensor) -> Tensor:
        if score is None:
            found = (states[:, :-1] * others).sum(dim=2)
        else:
            found = score(torch.cat((states[:, :-1], others), dim=2)).squeeze(2)
        return found.float() if found.element_size() < 4 else found

    # -log sigmoid(s) = softplus(-s), and -log(1 - sigmoid(s)) = softplus(s).
    losses = F.softplus(-of(tokens[:, 1:])) + F.softplus(of(negatives))
    counts = real[:, 1:]
    return losses.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)


def draw_negatives(
    sequences: JaggedSequences, behavior: int, negative_behavior: int | None, length: int
) -> Tensor:
    """Rows of ``sequences.values``, int64 ``[B, length]``, drawn with replacement.

    From the user's tokens of ``negative_behavior``; where there are none, or it is None, from all
    users' tokens of ``behavior``. Nothing is read back to the host. Without any such token the rows
    are some of ``values``, which has at least one.
    """
    users = sequences.num_users
    ends = sequences.offsets[behavior * users], sequences.offsets[(behavior + 1) * users]
    start = ends[0].expand(users)
    count = (ends[1] - ends[0]).expand(users)
    if negative_behavior is not None:
        own = sequences.offsets[negative_behavior * users : (negative_behavior + 1) * users + 1]
        own_count = own[1:] - own[:-1]
        start = torch.where(own_count > 0, own[:-1], start)
        count = torch.where(own_count > 0, own_count, count)
    place = torch.rand(users, length, dtype=torch.float64, device=start.device)
    rows = start.unsqueeze(1) + (place * count.unsqueeze(1)).long()
    return rows.clamp(max=len(sequences.values) - 1)
