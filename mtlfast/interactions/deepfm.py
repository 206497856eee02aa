"""DeepFM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast._checks import check_dropout, check_units
from mtlfast.interactions.base import Interaction, flatten_fields, per_module
from mtlfast.interactions.fm import fm_vector
from mtlfast.nn.stacked import StackedMLP


class DeepFM(Interaction):
    """``fm_vector || MLP(x)`` on shared embeddings (Guo et al., IJCAI 2017); ``W = d + units[-1]``.

    The paper's logit is the sum of the FM vector's elements plus a linear map of the MLP's output,
    hence a linear map of this output, plus the first-order term, which needs no interaction.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        units: widths of the MLP, ReLU after each.
        dropout: probability after every activation.
        num_modules: ``G`` or None, see :class:`Interaction`.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        units: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        num_modules: int | None = None,
    ) -> None:
        check_units("units", units)
        check_dropout(dropout)
        super().__init__(num_fields, embed_dim, embed_dim + units[-1], num_modules)
        self.mlp = StackedMLP(self.num_groups, self.input_dim, units, dropout)

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        fm = per_module(fm_vector(x), self.num_groups)
        return torch.cat((fm, self.mlp(flatten_fields(x))), dim=-1)
