"""CIN, the compressed interaction network of xDeepFM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast._checks import check_units
from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, xavier_
from mtlfast.nn.stacked import stacked_linear

Activation = Literal["none", "relu"]


class CompressedInteraction(Interaction):
    """CIN (Lian et al., KDD 2018, Eq. 6)::

        X^0 = the fields [N, d]
        X^k[c] = act( sum_ij W^k[c, i, j] (X^(k-1)[i] * X^0[j]) + b^k[c] )      [H_k, d]
        p^k[c] = sum over d of X^k[c];   output  p^1 || p^2 || ...

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        units: ``H_k``, feature maps of each layer.
        activation: "none", or "relu" after every layer.
        split_half: the first half of a layer's maps goes to the output only, the second half to the
            next layer only; the last layer's all go to the output.
        num_modules: ``G`` or None, see :class:`Interaction`.

    Parameters ``weights.{k} [G, H_k, H_(k-1) * N]`` and ``biases.{k} [G, H_k]``.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        units: Sequence[int] = (64, 64),
        activation: Activation = "none",
        split_half: bool = False,
        num_modules: int | None = None,
    ) -> None:
        check_units("units", units)
        if activation not in ("none", "relu"):
            raise bad("activation", "none or relu", repr(activation))
        if split_half and any(width % 2 for width in units[:-1]):
            raise bad("units", "even widths in all layers but the last", list(units))
        kept = [width // 2 if split_half else width for width in units[:-1]]
        super().__init__(num_fields, embed_dim, sum(kept) + units[-1], num_modules)
        self.activation = activation
        self.split_half = split_half
        self.weights = nn.ParameterList(
            torch.empty(self.num_groups, width, before * num_fields)
            for before, width in zip([num_fields, *kept], units, strict=True)
        )
        self.biases = nn.ParameterList(torch.empty(self.num_groups, width) for width in units)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            xavier_(weight)
            nn.init.zeros_(bias)

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        shape = (x.shape[1], self.embed_dim)
        start = x.transpose(2, 3)  # [S, B, d, N]
        maps = start
        pooled = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            outer = maps.unsqueeze(-1) * start.unsqueeze(-2)  # [S or G, B, d, H, N]
            outer = outer.flatten(3).flatten(1, 2)
            maps = stacked_linear(outer, weight, bias, relu=self.activation == "relu")
            maps = maps.unflatten(1, shape)  # [G, B, d, H]
            done = maps
            if self.split_half and layer < len(self.weights) - 1:
                done, maps = maps.chunk(2, dim=-1)
            pooled.append(done.sum(dim=2))
        return torch.cat(pooled, dim=-1)
