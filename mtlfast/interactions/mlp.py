"""A multi-layer perceptron over the flattened fields: implicit interactions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlfast._checks import check_dropout, check_units
from mtlfast.interactions.base import Interaction, flatten_fields
from mtlfast.nn.stacked import StackedMLP


class DeepInteraction(Interaction):
    """``MLP(x)``, ReLU after every layer; ``W = units[-1]``.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        units: width of each layer.
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
        super().__init__(num_fields, embed_dim, units[-1], num_modules)
        self.mlp = StackedMLP(self.num_groups, self.input_dim, units, dropout)

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        return self.mlp(flatten_fields(x))
