"""FiBiNET."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlfast._checks import check_dropout, check_units
from mtlfast.interactions.base import Interaction
from mtlfast.interactions.bilinear import BilinearInteraction, BilinearKind
from mtlfast.interactions.senet import Excitation, Squeeze, SqueezeExcitation
from mtlfast.nn.stacked import StackedMLP


class FiBiNET(Interaction):
    """``bilinear(E) || bilinear'(SENet(E))``, then an MLP (Huang et al., RecSys 2019).

    Args:
        num_fields: ``N``, at least 2.
        embed_dim: ``d``.
        kind: see :class:`BilinearInteraction`.
        share: both bilinear maps have the same weights.
        reduction, squeeze, excitation: see :class:`SqueezeExcitation`.
        units: widths of the MLP, ReLU after each; with none the output is the concatenation,
            ``W = N(N-1) * d``.
        dropout: probability after every activation of the MLP.
        num_modules: ``G`` or None, see :class:`Interaction`.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        kind: BilinearKind = "interaction",
        share: bool = False,
        reduction: int = 3,
        squeeze: Squeeze = "mean",
        excitation: Excitation = "relu",
        units: Sequence[int] = (),
        dropout: float = 0.0,
        num_modules: int | None = None,
    ) -> None:
        check_units("units", units, allow_empty=True)
        check_dropout(dropout)
        bilinear = BilinearInteraction(num_fields, embed_dim, kind=kind, num_modules=num_modules)
        width = 2 * bilinear.output_dim
        super().__init__(num_fields, embed_dim, units[-1] if units else width, num_modules)
        self.senet = SqueezeExcitation(
            num_fields,
            embed_dim,
            reduction=reduction,
            squeeze=squeeze,
            excitation=excitation,
            num_modules=num_modules,
        )
        self.bilinear = bilinear
        self.senet_bilinear = (
            None
            if share
            else BilinearInteraction(num_fields, embed_dim, kind=kind, num_modules=num_modules)
        )
        self.mlp = StackedMLP(self.num_groups, width, units, dropout)

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        second = self.bilinear if self.senet_bilinear is None else self.senet_bilinear
        plain = self.bilinear.interact(x, ids)
        weighted = second.interact(self.senet.reweight(x), ids)
        return self.mlp(torch.cat((plain, weighted), dim=-1))
