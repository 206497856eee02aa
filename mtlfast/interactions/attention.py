"""Multi-head self-attention over the fields."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, per_module, xavier_
from mtlfast.nn.stacked import stacked_linear


class FieldAttention(Interaction):
    """One interacting layer (AutoInt, Song et al., CIKM 2019)::

        y = relu( concat_h softmax(Q_h K_h^T / sqrt(d_h)) V_h + x W_res )

    over the ``N`` fields of a sample; the output is ``y`` flattened, ``W = N*d``. AutoInt itself
    leaves out the division by ``sqrt(d_h)``.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        num_heads: a divisor of ``d``.
        num_modules: ``G`` or None, see :class:`Interaction`.

    Parameter ``weight [G, 4*d, d]`` in ``nn.Linear`` layout: query, key, value, residual.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        num_heads: int = 1,
        num_modules: int | None = None,
    ) -> None:
        check_count("num_heads", num_heads)
        if embed_dim % num_heads:
            raise bad("num_heads", f"a divisor of embed_dim = {embed_dim}", num_heads)
        super().__init__(num_fields, embed_dim, num_fields * embed_dim, num_modules)
        self.num_heads = num_heads
        self.weight = nn.Parameter(torch.empty(self.num_groups, 4 * embed_dim, embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights."""
        xavier_(self.weight.unflatten(1, (4, self.embed_dim)))

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        batch, num_fields = x.shape[1:3]
        mapped = stacked_linear(per_module(x, x.shape[0]).flatten(1, 2), self.weight)
        mapped = mapped.unflatten(1, (batch, num_fields))  # [G, B, N, 4*d]
        *attended, residual = mapped.chunk(4, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for part in attended
        )
        out = F.scaled_dot_product_attention(query, key, value)  # [G, B, h, N, d_h]
        return (out.transpose(2, 3).flatten(3) + residual).relu().flatten(2)
