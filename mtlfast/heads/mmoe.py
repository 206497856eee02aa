"""MMoE, multi-gate mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count, check_units
from mtlfast.heads.base import MultiTaskHead, shared_rows
from mtlfast.nn.stacked import StackedMLP, stacked_linear


class MMoE(MultiTaskHead):
    """``o_t = tower_t(sum_k softmax(r_t G_t)_k expert_k(r_t))`` (Ma et al., KDD 2018).

    Experts are shared: all of them and all tasks' rows are one matrix product per layer. Gates
    have no bias and no hidden layer.

    Args:
        input_dim: ``D``.
        num_tasks: ``T``.
        num_experts: ``K``.
        expert_units: widths of each expert.
        tower_units: hidden widths of the towers.
        dropout: probability after every hidden activation.
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        *,
        num_experts: int = 4,
        expert_units: Sequence[int] = (128, 64),
        tower_units: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        check_units("expert_units", expert_units)
        check_count("num_experts", num_experts)
        super().__init__(input_dim, num_tasks, expert_units[-1], tower_units, dropout)
        self.num_experts = num_experts
        self.experts = StackedMLP(num_experts, input_dim, expert_units, dropout)
        self.gate_weight = nn.Parameter(torch.empty(num_tasks, num_experts, input_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        self.experts.reset_parameters()
        self.towers.reset_parameters()
        for gate in self.gate_weight:
            nn.init.xavier_uniform_(gate)

    def gates(self, x: Tensor) -> Tensor:
        """Weights of the experts ``[T, B, K]`` for ``[S, B, D]``, ``S`` = 1 or ``T``."""
        return stacked_linear(x, self.gate_weight).softmax(dim=-1)

    def task_repr(self, x: Tensor) -> Tensor:
        streams, batch, _ = x.shape
        experts = self.experts(shared_rows(x))
        experts = experts.view(self.num_experts, streams, batch, self.repr_dim)
        gates = self.gates(x)
        return (gates.permute(2, 0, 1).unsqueeze(-1) * experts).sum(dim=0)
