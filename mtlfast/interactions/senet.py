"""SENet: one learned weight per field."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, xavier_
from mtlfast.nn.stacked import stacked_linear

Squeeze = Literal["mean", "max"]
Excitation = Literal["relu", "sigmoid"]


class SqueezeExcitation(Interaction):
    """SENet over fields (Hu et al., CVPR 2018; FiBiNET, RecSys 2019)::

        z_f = mean over d of v_f                      (or max)
        A = act( relu(z Q1) Q2 )                      Q1 [N, N/r], Q2 [N/r, N], no biases
        v'_f = A_f v_f

    The output is ``v'`` flattened, ``W = N*d``; :meth:`reweight` keeps the fields apart.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        reduction: ``r``; the hidden width is ``max(1, N // r)``.
        squeeze: "mean" or "max".
        excitation: last activation, "relu" or "sigmoid".
        num_modules: ``G`` or None, see :class:`Interaction`.

    Parameters, in ``nn.Linear`` layout: ``weight1 [G, N//r, N]``, ``weight2 [G, N, N//r]``.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        reduction: int = 3,
        squeeze: Squeeze = "mean",
        excitation: Excitation = "relu",
        num_modules: int | None = None,
    ) -> None:
        check_count("reduction", reduction)
        if squeeze not in ("mean", "max"):
            raise bad("squeeze", "mean or max", repr(squeeze))
        if excitation not in ("relu", "sigmoid"):
            raise bad("excitation", "relu or sigmoid", repr(excitation))
        super().__init__(num_fields, embed_dim, num_fields * embed_dim, num_modules)
        self.squeeze = squeeze
        self.excitation = excitation
        hidden = max(1, num_fields // reduction)
        self.weight1 = nn.Parameter(torch.empty(self.num_groups, hidden, num_fields))
        self.weight2 = nn.Parameter(torch.empty(self.num_groups, num_fields, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights."""
        xavier_(self.weight1)
        xavier_(self.weight2)

    def reweight(self, x: Tensor) -> Tensor:
        """``[S, B, N, d]`` to ``v' [G, B, N, d]``."""
        z = x.mean(dim=-1) if self.squeeze == "mean" else x.amax(dim=-1)
        hidden = stacked_linear(z, self.weight1, relu=True)
        weight = stacked_linear(hidden, self.weight2)
        weight = weight.relu() if self.excitation == "relu" else weight.sigmoid()
        return weight.unsqueeze(-1) * x

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        return self.reweight(x).flatten(2)
