"""What the cross networks have in common: an MLP after or beside the cross layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlfast._checks import check_count, check_dropout, check_units
from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, flatten_fields
from mtlfast.nn.stacked import StackedMLP

Structure = Literal["serial", "parallel"]


class DeepAndCross(Interaction):
    """``cross(x)`` alone, ``MLP(cross(x))`` (serial) or ``cross(x) || MLP(x)`` (parallel).

    Subclasses give :meth:`cross`. ``x`` are the flattened fields, of width ``D = N*d``.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        num_layers: cross layers.
        units: widths of the MLP, ReLU after each; with none there is no MLP.
        structure: "serial" or "parallel".
        dropout: probability after every activation of the MLP.
        num_modules: ``G`` or None, see :class:`Interaction`.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        num_layers: int,
        units: Sequence[int],
        structure: Structure,
        dropout: float,
        num_modules: int | None,
    ) -> None:
        check_count("num_layers", num_layers)
        check_units("units", units, allow_empty=True)
        check_dropout(dropout)
        if structure not in ("serial", "parallel"):
            raise bad("structure", "serial or parallel", repr(structure))
        width = num_fields * embed_dim
        if units:
            width = units[-1] if structure == "serial" else width + units[-1]
        super().__init__(num_fields, embed_dim, width, num_modules)
        self.num_layers = num_layers
        self.structure = structure
        self.mlp = StackedMLP(self.num_groups, self.input_dim, units, dropout) if units else None

    @abstractmethod
    def cross(self, x: Tensor) -> Tensor:
        """``[S, B, D]`` to ``[G, B, D]``."""

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        flat = flatten_fields(x)
        crossed = self.cross(flat)
        if self.mlp is None:
            return crossed
        if self.structure == "serial":
            return self.mlp(crossed)
        return torch.cat((crossed, self.mlp(flat)), dim=-1)
