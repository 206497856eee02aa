"""DCN, the deep and cross network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast.interactions.deep_and_cross import DeepAndCross, Structure
from mtlfast.nn.stacked import stacked_linear


class CrossNetwork(DeepAndCross):
    """Cross layers of rank 1 (DCN, Wang et al., ADKDD 2017, Eq. 3)::

        x_(l+1) = x_0 (x_l . w_l) + b_l + x_l

    Computed in closed form: every ``x_l`` is ``c_l x_0 + (b_0 + ... + b_(l-1))`` with one number
    ``c_l`` per sample, so that all products with ``x_0`` are one matrix product of width
    ``num_layers``, and only the last ``x_l`` is ever built.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        num_layers: cross layers.
        units, structure, dropout: see :class:`DeepAndCross`; the paper's network is parallel.
        num_modules: ``G`` or None, see :class:`Interaction`.

    Parameters ``weight [G, L, D]``, ``bias [G, L, D]``.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        num_layers: int = 2,
        units: Sequence[int] = (),
        structure: Structure = "parallel",
        dropout: float = 0.0,
        num_modules: int | None = None,
    ) -> None:
        super().__init__(
            num_fields,
            embed_dim,
            num_layers=num_layers,
            units=units,
            structure=structure,
            dropout=dropout,
            num_modules=num_modules,
        )
        shape = (self.num_groups, num_layers, self.input_dim)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-normal weights, as those of a ``D -> 1`` map; zero biases."""
        nn.init.normal_(self.weight, std=(2.0 / (self.input_dim + 1)) ** 0.5)
        nn.init.zeros_(self.bias)
        if self.mlp is not None:
            self.mlp.reset_parameters()

    def cross(self, x: Tensor) -> Tensor:
        along = stacked_linear(x, self.weight)  # x_0 . w_l  [G, B, L]
        total = self.bias.cumsum(dim=1)  # b_0 + ... + b_l  [G, L, D]
        # (b_0 + ... + b_(l-1)) . w_l; there is no bias below the first layer.
        offset = ((total - self.bias) * self.weight).sum(dim=-1)  # [G, L]
        factor = torch.ones_like(along[..., 0])  # [G, B]
        for layer in range(self.num_layers):
            factor = factor * (1 + along[..., layer]) + offset[:, layer, None]
        return torch.addcmul(total[:, -1:], factor.unsqueeze(-1), x)
