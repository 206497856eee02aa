"""Random sequence lengths."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.synthetic.random_bits import RandomBits, uniform
from mtlfast.data.synthetic.shapes import Shape

__all__ = ["LengthKind", "LengthSampler", "truncated_geometric_mean"]

LengthKind = Literal["geometric", "max", "heavy_tailed"]


def truncated_geometric_mean(q: float, max_length: int) -> float:
    """E[L] where P(L >= k) = q^k for 1 <= k <= max_length."""
    return sum(q**k for k in range(1, max_length + 1))


class LengthSampler:
    """Lengths of M sequences for any number of users.

    Args:
        shape: gives q and Lmax per behavior.
        kind: ``"geometric"``: the truncated geometric with the published averages.
            ``"max"``: every sequence has its maximal length (no raggedness).
            ``"heavy_tailed"``: half of the users have no history at all, the other half
            geometric lengths with twice the published averages.
    """

    def __init__(self, shape: Shape, kind: LengthKind) -> None:
        if kind not in get_args(LengthKind):
            raise ValueError(f"lengths: expected one of {get_args(LengthKind)}, found {kind!r}")
        self.kind = kind
        self.max_lengths = np.array(shape.max_lengths, dtype=np.int64)
        q = np.array(shape.continuation)
        if kind == "heavy_tailed":
            pairs = zip(q, shape.max_lengths, strict=True)
            q = np.array([_q_with_mean(2 * truncated_geometric_mean(*p), p[1]) for p in pairs])
        self.log_q = np.log(q)

    def __call__(self, bits: RandomBits, num_users: int) -> NDArray[np.int64]:
        """Lengths int64 ``[M, U]``."""
        num_behaviors = len(self.max_lengths)
        if self.kind == "max":
            return np.repeat(self.max_lengths[:, None], num_users, axis=1)
        # P(log u / log q >= k) = P(u <= q^k) = q^k.
        u = uniform(bits(num_behaviors, num_users))
        lengths = np.floor(np.log(u) / self.log_q[:, None]).astype(np.int64)
        lengths = np.minimum(lengths, self.max_lengths[:, None])
        if self.kind == "heavy_tailed":
            lengths *= (bits(num_users) & np.uint64(1)).astype(np.int64)
        return lengths


def _q_with_mean(mean: float, max_length: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if truncated_geometric_mean(middle, max_length) < mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2
