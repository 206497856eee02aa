"""PLE, progressive layered extraction; with one level CGC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count, check_levels
from mtlfast.heads.base import MultiTaskHead, shared_rows
from mtlfast.nn.stacked import StackedMLP, stacked_linear


class ExtractionLevel(nn.Module):
    """One level of PLE on ``T`` task streams and ``S`` shared streams.

    Args:
        input_dim: width of every stream.
        num_tasks: ``T``.
        num_task_experts: experts of each task.
        num_shared_experts: experts of all tasks.
        units: widths of each expert.
        dropout: probability after every activation.
        last: the last level has no shared output.
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        num_task_experts: int,
        num_shared_experts: int,
        units: Sequence[int],
        dropout: float,
        last: bool,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.num_task_experts = num_task_experts
        self.num_shared_experts = num_shared_experts
        self.output_dim = units[-1]
        own = num_tasks * num_task_experts
        self.task_experts = StackedMLP(own, input_dim, units, dropout)
        self.shared_experts = StackedMLP(num_shared_experts, input_dim, units, dropout)
        self.task_gate_weight = nn.Parameter(
            torch.empty(num_tasks, num_task_experts + num_shared_experts, input_dim)
        )
        self.shared_gate_weight = (
            None if last else nn.Parameter(torch.empty(1, own + num_shared_experts, input_dim))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        self.task_experts.reset_parameters()
        self.shared_experts.reset_parameters()
        for gate in self.task_gate_weight:
            nn.init.xavier_uniform_(gate)
        if self.shared_gate_weight is not None:
            nn.init.xavier_uniform_(self.shared_gate_weight[0])

    def task_gates(self, task: Tensor) -> Tensor:
        """Weights ``[T, B, n]`` of a task's own experts, then of the shared ones."""
        return stacked_linear(task, self.task_gate_weight).softmax(dim=-1)

    def forward(self, task: Tensor, shared: Tensor) -> tuple[Tensor, Tensor | None]:
        """Next task streams ``[T, B, out]`` and shared streams ``[S, B, out]`` (None if last).

        Args:
            task: ``[T, B, in]``, or ``[1, B, in]`` when all tasks read the same.
            shared: ``[S, B, in]``, ``S`` = 1 or ``T``.
        """
        streams, batch, _ = shared.shape
        width, n_task, n_shared = self.output_dim, self.num_task_experts, self.num_shared_experts
        own = self.task_experts(task)  # [T*n_task, B, out]
        common = self.shared_experts(shared_rows(shared)).view(n_shared, streams, batch, width)

        gates = self.task_gates(task).permute(2, 0, 1).unsqueeze(-1)  # [n_task + n_shared, T, B, 1]
        own_by_task = own.view(self.num_tasks, n_task, batch, width).transpose(0, 1)
        next_task = (gates[:n_task] * own_by_task).sum(dim=0)
        next_task = next_task + (gates[n_task:] * common).sum(dim=0)
        if self.shared_gate_weight is None:
            return next_task, None

        num_own = own.shape[0]
        gates = stacked_linear(shared_rows(shared), self.shared_gate_weight).softmax(dim=-1)
        gates = gates.view(streams, batch, num_own + n_shared).permute(2, 0, 1).unsqueeze(-1)
        next_shared = (gates[:num_own] * own.unsqueeze(1)).sum(dim=0)
        next_shared = next_shared + (gates[num_own:] * common).sum(dim=0)
        return next_task, next_shared


class PLE(MultiTaskHead):
    """Progressive layered extraction (Tang et al., RecSys 2020) of any number of levels.

    Every task has its own stream, and a shared stream per task (equal for all tasks on a
    ``[B, D]`` input). At each level a task mixes its own experts, on its stream, with the shared
    experts, on its shared stream; the shared gate mixes all tasks' experts, each on its task's
    stream, with the shared experts on the shared stream. With one level this is CGC.

    Args:
        input_dim: ``D``.
        num_tasks: ``T``.
        expert_units: for every level the widths of each expert.
        num_task_experts: experts of each task, at every level.
        num_shared_experts: shared experts, at every level.
        tower_units: hidden widths of the towers.
        dropout: probability after every hidden activation.
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        *,
        expert_units: Sequence[Sequence[int]] = ((128, 64),),
        num_task_experts: int = 1,
        num_shared_experts: int = 2,
        tower_units: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        check_levels("expert_units", expert_units)
        check_count("num_task_experts", num_task_experts)
        check_count("num_shared_experts", num_shared_experts)
        super().__init__(input_dim, num_tasks, expert_units[-1][-1], tower_units, dropout)
        widths = [input_dim, *(units[-1] for units in expert_units)]
        self.levels = nn.ModuleList(
            ExtractionLevel(
                width,
                num_tasks,
                num_task_experts,
                num_shared_experts,
                units,
                dropout,
                last=level == len(expert_units) - 1,
            )
            for level, (width, units) in enumerate(zip(widths, expert_units, strict=False))
        )

    def task_repr(self, x: Tensor) -> Tensor:
        task = shared = x
        for level in self.levels:
            task, shared = level(task, shared)
        return task
