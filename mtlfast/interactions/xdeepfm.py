"""xDeepFM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast._checks import check_dropout, check_units
from mtlfast.interactions.base import Interaction, flatten_fields
from mtlfast.interactions.cin import Activation, CompressedInteraction
from mtlfast.nn.stacked import StackedMLP


class XDeepFM(Interaction):
    """``CIN(fields) || MLP(x)`` (Lian et al., KDD 2018); ``W`` = CIN's width + ``units[-1]``.

    The paper's logit is a linear map of this output plus the first-order term.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        cin_units, activation, split_half: see :class:`CompressedInteraction`.
        units: widths of the MLP, ReLU after each.
        dropout: probability after every activation of the MLP.
        num_modules: ``G`` or None, see :class:`Interaction`.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        cin_units: Sequence[int] = (64, 64),
        activation: Activation = "none",
        split_half: bool = False,
        units: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        num_modules: int | None = None,
    ) -> None:
        check_units("units", units)
        check_dropout(dropout)
        cin = CompressedInteraction(
            num_fields,
            embed_dim,
            units=cin_units,
            activation=activation,
            split_half=split_half,
            num_modules=num_modules,
        )
        super().__init__(num_fields, embed_dim, cin.output_dim + units[-1], num_modules)
        self.cin = cin
        self.mlp = StackedMLP(self.num_groups, self.input_dim, units, dropout)

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        return torch.cat((self.cin.interact(x, ids), self.mlp(flatten_fields(x))), dim=-1)
