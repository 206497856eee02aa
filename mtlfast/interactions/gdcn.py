"""GDCN, the gated deep and cross network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast.interactions.base import per_module, xavier_
from mtlfast.interactions.deep_and_cross import DeepAndCross, Structure
from mtlfast.ops import gated_cross


class GatedCrossNetwork(DeepAndCross):
    """Gated cross layers (GDCN, Wang et al., CIKM 2023)::

        x_(l+1) = x_0 * (x_l Wc_l + b_l) * sigmoid(x_l Wg_l) + x_l

    All of a layer is the fused op :func:`mtlfast.ops.gated_cross`. With an MLP, the structure
    "serial" is GDCN-S and "parallel" GDCN-P.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        num_layers: gated cross layers.
        units, structure, dropout: see :class:`DeepAndCross`.
        num_modules: ``G`` or None, see :class:`Interaction`.

    Parameters: ``weights.{l} [G, 2*D, D]`` in ``nn.Linear`` layout, first the rows of ``Wc``, then
    those of ``Wg``; ``biases.{l} [G, D]``.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        num_layers: int = 2,
        units: Sequence[int] = (),
        structure: Structure = "serial",
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
        groups, width = self.num_groups, self.input_dim
        self.weights = nn.ParameterList(
            torch.empty(groups, 2 * width, width) for _ in range(num_layers)
        )
        self.biases = nn.ParameterList(torch.empty(groups, width) for _ in range(num_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            xavier_(weight.unflatten(1, (2, self.input_dim)))
            nn.init.zeros_(bias)
        if self.mlp is not None:
            self.mlp.reset_parameters()

    def cross(self, x: Tensor) -> Tensor:
        x = per_module(x, self.num_groups)
        crossed = x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            crossed = gated_cross(crossed, x, weight, bias)
        return crossed
