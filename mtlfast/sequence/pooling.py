"""YouTubeNet's and DIN's pooling of one sequence, without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast._checks import check_units
from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences
from mtlfast.sequence.base import SequenceEncoder

__all__ = ["DIN", "Dice", "MeanPooling"]


class MeanPooling(SequenceEncoder):
    """The mean of the tokens of one behavior (YouTubeNet, Covington et al., RecSys 2016).

    Zero for an empty sequence.

    Args:
        embed_dim: ``d``.
        behavior: which of the ``M``.
    """

    def __init__(self, embed_dim: int, *, behavior: int = 0) -> None:
        super().__init__(embed_dim, embed_dim)
        self.behavior = behavior

    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        part = sequences.behavior(self.behavior)
        sums = _segment_sum(part, part.values)
        return sums / part.lengths()[0].clamp(min=1).unsqueeze(1).to(sums.dtype)


class Dice(nn.Module):
    """``p s + a (1 - p) s`` with ``p = sigmoid(BatchNorm(s))`` and a learned ``a``, 0 at first.

    DIN (Zhou et al., KDD 2018), Eq. 5. Rows are tokens; with fewer than two of them the running
    statistics are taken.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-9, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, s: Tensor) -> Tensor:
        """``[N, width]`` of the same shape."""
        if s.shape[0] > 1 or not self.training:
            normal = self.norm(s)
        else:
            mean, var = self.norm.running_mean, self.norm.running_var
            if mean is None or var is None:
                raise RuntimeError("BatchNorm1d without running statistics")
            normal = (s - mean) * (var + self.norm.eps).rsqrt()
        gate = normal.sigmoid()
        return gate * s + self.alpha * (1 - gate) * s


class DIN(SequenceEncoder):
    """Sums the tokens of one behavior, weighted by their fit to the candidate (Zhou et al.).

    ``w_j = MLP([e, x_j, e - x_j, e * x_j])`` and ``u = sum_j w_j x_j`` over the tokens, with no
    softmax unless asked for. Zero for an empty sequence.

    Args:
        embed_dim: ``d``.
        behavior: which of the ``M``.
        units: hidden widths of the MLP.
        activation: "dice", "prelu" or "sigmoid".
        softmax: normalise the weights of a sequence.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        behavior: int = 0,
        units: Sequence[int] = (64,),
        activation: Literal["dice", "prelu", "sigmoid"] = "dice",
        softmax: bool = False,
    ) -> None:
        super().__init__(embed_dim, embed_dim)
        check_units("units", units)
        makers: dict[str, Callable[[int], nn.Module]] = {
            "dice": Dice,
            "prelu": lambda width: nn.PReLU(width),
            "sigmoid": lambda width: nn.Sigmoid(),
        }
        if activation not in makers:
            raise bad("activation", f"one of {list(makers)}", repr(activation))
        self.behavior = behavior
        self.softmax = softmax
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((4 * embed_dim, *units)):
            layers += [nn.Linear(n_in, n_out), makers[activation](n_out)]
        self.attention = nn.Sequential(*layers, nn.Linear(units[-1], 1))

    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        part = sequences.behavior(self.behavior)
        segment, tokens = part.segment_ids(), part.values
        item = target[segment]
        pairs = torch.cat((item, tokens, item - tokens, item * tokens), dim=1)
        weights = self.attention(pairs)
        if self.softmax:
            weights = _segment_softmax(part, weights.squeeze(1)).unsqueeze(1)
        return _segment_sum(part, weights * tokens)


def _segment_sum(part: JaggedSequences, values: Tensor) -> Tensor:
    """``[B, d]`` from ``[N, d]``."""
    sums = values.new_zeros(part.num_users, values.shape[1])
    return sums.index_add(0, part.segment_ids(), values)


def _segment_softmax(part: JaggedSequences, scores: Tensor) -> Tensor:
    """Weights ``[N]`` that add up to 1 in every sequence."""
    segment = part.segment_ids()
    highest = scores.new_full((part.num_users,), -torch.inf)
    highest = highest.scatter_reduce(0, segment, scores.detach(), "amax")
    raised = (scores - highest[segment]).exp()
    sums = scores.new_zeros(part.num_users).index_add(0, segment, raised)
    return raised / sums[segment]
