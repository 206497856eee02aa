"""A feature-interaction module of DTN: an interaction and a map to the common width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, xavier_
from mtlfast.nn.stacked import stacked_linear

ProjectionActivation = Literal["none", "relu"]


class ProjectedInteraction(Interaction):
    """``act(interaction(fields) W + c)`` of width ``D_o``.

    Args:
        interaction: any :class:`Interaction`; its ``num_modules`` is taken over.
        output_dim: ``D_o``.
        activation: "none" or "relu".

    Parameters ``weight [G, D_o, W]`` in ``nn.Linear`` layout, ``bias [G, D_o]``.
    """

    def __init__(
        self,
        interaction: Interaction,
        output_dim: int,
        *,
        activation: ProjectionActivation = "none",
    ) -> None:
        check_count("output_dim", output_dim)
        if activation not in ("none", "relu"):
            raise bad("activation", "none or relu", repr(activation))
        super().__init__(
            interaction.num_fields, interaction.embed_dim, output_dim, interaction.num_modules
        )
        self.needs_ids = interaction.needs_ids
        self.interaction = interaction
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(self.num_groups, output_dim, interaction.output_dim))
        self.bias = nn.Parameter(torch.empty(self.num_groups, output_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases of the projection."""
        xavier_(self.weight)
        nn.init.zeros_(self.bias)

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        inner = self.interaction.interact(x, ids)
        return stacked_linear(inner, self.weight, self.bias, relu=self.activation == "relu")
