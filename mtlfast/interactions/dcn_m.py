"""DCN-M (DCN-V2): cross layers with full matrices, or with a mixture of low-rank ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.interactions.base import xavier_
from mtlfast.interactions.deep_and_cross import DeepAndCross, Structure
from mtlfast.nn.stacked import stacked_linear


class CrossNetworkV2(DeepAndCross):
    """Cross layers with a full matrix (DCN-M, Wang et al., WWW 2021, Eq. 1)::

        x_(l+1) = x_0 * (x_l W_l + b_l) + x_l

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        num_layers: cross layers.
        units, structure, dropout: see :class:`DeepAndCross`.
        num_modules: ``G`` or None, see :class:`Interaction`.

    Parameters ``weights.{l} [G, D, D]`` in ``nn.Linear`` layout, ``biases.{l} [G, D]``.
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
        groups, width = self.num_groups, self.input_dim
        self.weights = nn.ParameterList(
            torch.empty(groups, width, width) for _ in range(num_layers)
        )
        self.biases = nn.ParameterList(torch.empty(groups, width) for _ in range(num_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            xavier_(weight)
            nn.init.zeros_(bias)
        if self.mlp is not None:
            self.mlp.reset_parameters()

    def cross(self, x: Tensor) -> Tensor:
        crossed = x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            crossed = torch.addcmul(crossed, x, stacked_linear(crossed, weight, bias))
        return crossed


class CrossNetworkMix(DeepAndCross):
    """Cross layers as a mixture of ``K`` low-rank experts (DCN-M, WWW 2021)::

        x_(l+1) = sum_k softmax_k(x_l g_k) x_0 * ( tanh(tanh(x_l V_lk) C_lk) U_lk^T + b_l ) + x_l

    The gates sum to 1 and come before the linear map ``U``, so that all experts' last maps are one
    matrix product of width ``K*r``. As in the paper's implementations, the gates ``g_k`` are shared
    by all layers.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        num_layers: cross layers.
        num_experts: ``K``.
        rank: ``r``.
        units, structure, dropout: see :class:`DeepAndCross`.
        num_modules: ``G`` or None, see :class:`Interaction`.

    Parameters: ``gate [G, K, D]``; per layer ``down.{l} [G, K*r, D]`` (V, transposed),
    ``inner.{l} [G, K, r, r]`` (C, transposed), ``up.{l} [G, D, K*r]`` (U), ``biases.{l} [G, D]``.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        num_layers: int = 2,
        num_experts: int = 4,
        rank: int = 32,
        units: Sequence[int] = (),
        structure: Structure = "parallel",
        dropout: float = 0.0,
        num_modules: int | None = None,
    ) -> None:
        check_count("num_experts", num_experts)
        check_count("rank", rank)
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
        self.num_experts = num_experts
        self.rank = rank
        self.gate = nn.Parameter(torch.empty(groups, num_experts, width))

        def per_layer(*shape: int) -> nn.ParameterList:
            return nn.ParameterList(torch.empty(groups, *shape) for _ in range(num_layers))

        self.down = per_layer(num_experts * rank, width)
        self.inner = per_layer(num_experts, rank, rank)
        self.up = per_layer(width, num_experts * rank)
        self.biases = per_layer(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, each expert's matrices on their own; zero biases."""
        xavier_(self.gate)
        for down, inner, up, bias in zip(self.down, self.inner, self.up, self.biases, strict=True):
            xavier_(down.unflatten(1, (self.num_experts, self.rank)))
            xavier_(inner)
            for columns in up.detach().split(self.rank, dim=-1):
                xavier_(columns)
            nn.init.zeros_(bias)
        if self.mlp is not None:
            self.mlp.reset_parameters()

    def cross(self, x: Tensor) -> Tensor:
        experts = (self.num_experts, self.rank)
        crossed = x
        for down, inner, up, bias in zip(self.down, self.inner, self.up, self.biases, strict=True):
            gate = stacked_linear(crossed, self.gate).softmax(dim=-1)  # [G, B, K]
            hidden = stacked_linear(crossed, down).tanh().unflatten(-1, experts)
            hidden = torch.einsum("gbkr,gksr->gbks", hidden, inner).tanh()
            mixed = (gate.unsqueeze(-1) * hidden).flatten(2)  # [G, B, K*r]
            crossed = torch.addcmul(crossed, x, stacked_linear(mixed, up, bias))
        return crossed
