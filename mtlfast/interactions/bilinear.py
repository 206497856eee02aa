"""Bilinear interaction of all pairs of fields."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, xavier_
from mtlfast.nn.constants import Constants
from mtlfast.nn.stacked import stacked_linear

BilinearKind = Literal["all", "each", "interaction"]


class BilinearInteraction(Constants, Interaction):
    """``p_ij = (v_i W) * v_j`` for all ``i < j`` (FiBiNET, RecSys 2019).

    The output holds the pairs in lexicographic order, flattened: ``W = N(N-1)/2 * d``.

    Args:
        num_fields: ``N``, at least 2.
        embed_dim: ``d``.
        kind: one ``W`` for "all" pairs, one for "each" left field ``i``, or one per pair
            ("interaction").
        num_modules: ``G`` or None, see :class:`Interaction`.

    Parameter ``weight [G, K, d, d]`` in ``nn.Linear`` layout (out, in), with ``K`` = 1, ``N-1`` or
    ``N(N-1)/2``.
    """

    left: Tensor
    right: Tensor

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        kind: BilinearKind = "interaction",
        num_modules: int | None = None,
    ) -> None:
        if kind not in ("all", "each", "interaction"):
            raise bad("kind", "all, each or interaction", repr(kind))
        if num_fields < 2:
            raise bad("num_fields", "at least 2", num_fields)
        pairs = num_fields * (num_fields - 1) // 2
        super().__init__(num_fields, embed_dim, pairs * embed_dim, num_modules)
        self.kind = kind
        count = {"all": 1, "each": num_fields - 1, "interaction": pairs}[kind]
        self.weight = nn.Parameter(torch.empty(self.num_groups, count, embed_dim, embed_dim))
        sides = zip(*combinations(range(num_fields), 2), strict=True)
        for side, fields in zip(("left", "right"), sides, strict=True):
            self.register_constant(side, partial(torch.tensor, fields, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights."""
        xavier_(self.weight)

    def pairs(self, x: Tensor) -> Tensor:
        """``[S, B, N, d]`` to ``[G, B, P, d]``."""
        right = x.index_select(2, self.right)
        if self.kind == "all":
            rows = x.flatten(1, 2)  # [S, B*N, d]
            mapped = stacked_linear(rows, self.weight.squeeze(1)).unflatten(1, x.shape[1:3])
            return mapped.index_select(2, self.left) * right
        if self.kind == "each":
            mapped = _per_column(x[:, :, :-1], self.weight)
            return mapped.index_select(2, self.left) * right
        return _per_column(x.index_select(2, self.left), self.weight) * right

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        return self.pairs(x).flatten(2)


def _per_column(x: Tensor, weight: Tensor) -> Tensor:
    """Column ``k`` of ``x [S, B, K, d]`` by its own ``weight [G, K, e, d]``: ``[G, B, K, e]``."""
    if x.shape[0] == 1:
        return torch.einsum("bkd,gked->gbke", x[0], weight)
    return torch.einsum("gbkd,gked->gbke", x, weight)
