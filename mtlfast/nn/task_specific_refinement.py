"""TRM, the task-specific refinement module of DTRN."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.ops import stacked_linear


class TaskSpecificRefinement(nn.Module):
    """One bit-wise gate per task over the bottom representation, DTRN (CIKM 2023) Eq. 9::

        raw_t = [sparse, interest_t]                                  [D]
        r_t   = raw_t * sigmoid(relu(raw_t U1_t + u1_t) U2_t + u2_t)

    All tasks are one batched computation. The sparse part is the same for every task, so its
    product with all ``U1_t`` is one GEMM, and ``raw`` itself is not built unless asked for.

    Args:
        num_tasks: ``T``.
        sparse_dim: width ``N*d`` of the flattened sparse fields.
        interest_dim: width ``M*d`` of one task's interests.
        hidden_dim: ``D_r``; ``max(1, D // reduction)`` when None.
        reduction: see ``hidden_dim``.

    Raises:
        ValueError: for sizes that are not positive.

    Parameters, in ``nn.Linear`` layout per task: ``sparse_weight [T, D_r, N*d]`` and
    ``interest_weight [T, D_r, M*d]``, the two parts of ``U1``; ``bias1 [T, D_r]``;
    ``weight2 [T, D, D_r]``; ``bias2 [T, D]``.
    """

    def __init__(
        self,
        num_tasks: int,
        sparse_dim: int,
        interest_dim: int,
        *,
        hidden_dim: int | None = None,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        for name, size in (
            ("num_tasks", num_tasks),
            ("sparse_dim", sparse_dim),
            ("interest_dim", interest_dim),
            ("reduction", reduction),
            ("hidden_dim", 1 if hidden_dim is None else hidden_dim),
        ):
            check_count(name, size)
        self.num_tasks = num_tasks
        self.sparse_dim = sparse_dim
        self.interest_dim = interest_dim
        self.output_dim = sparse_dim + interest_dim
        self.hidden_dim = max(1, self.output_dim // reduction) if hidden_dim is None else hidden_dim
        self.sparse_weight = nn.Parameter(torch.empty(num_tasks, self.hidden_dim, sparse_dim))
        self.interest_weight = nn.Parameter(torch.empty(num_tasks, self.hidden_dim, interest_dim))
        self.bias1 = nn.Parameter(torch.empty(num_tasks, self.hidden_dim))
        self.weight2 = nn.Parameter(torch.empty(num_tasks, self.output_dim, self.hidden_dim))
        self.bias2 = nn.Parameter(torch.empty(num_tasks, self.output_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform per task over the whole ``U1_t`` and ``U2_t``, zero biases."""
        bound1 = (6.0 / (self.output_dim + self.hidden_dim)) ** 0.5
        for weight in (self.sparse_weight, self.interest_weight, self.weight2):
            nn.init.uniform_(weight, -bound1, bound1)
        nn.init.zeros_(self.bias1)
        nn.init.zeros_(self.bias2)

    @overload
    def forward(
        self, sparse: Tensor, interest: Tensor, *, return_raw: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def forward(
        self, sparse: Tensor, interest: Tensor, *, return_raw: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, sparse: Tensor, interest: Tensor, *, return_raw: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Refined representations ``[B, T, D]``.

        The result is laid out task by task in memory (a transposed view): the heads read it
        without a copy.

        Args:
            sparse: sparse-field embeddings ``[B, N, d]`` or ``[B, N*d]``.
            interest: ``[B, T, M*d]``.
            return_raw: also return ``raw [B, T, D]``, as ``(raw, refined)``.

        Raises:
            ValueError: shapes that are not those the module was made for.
        """
        if sparse.dim() == 3:
            sparse = sparse.flatten(1)
        if sparse.dim() != 2 or sparse.shape[-1] != self.sparse_dim:
            raise bad("sparse", f"shape [B, {self.sparse_dim}] once flattened", list(sparse.shape))
        batch = sparse.shape[0]
        if interest.shape != (batch, self.num_tasks, self.interest_dim):
            raise bad(
                "interest",
                f"shape [{batch}, {self.num_tasks}, {self.interest_dim}]",
                f"shape {list(interest.shape)}",
            )
        by_task = interest.transpose(0, 1)  # [T, B, M*d], a view
        hidden = stacked_linear(sparse.unsqueeze(0), self.sparse_weight, self.bias1)
        hidden = torch.baddbmm(hidden, by_task, self.interest_weight.transpose(1, 2)).relu_()
        gate = stacked_linear(hidden, self.weight2, self.bias2).sigmoid()
        gate_sparse, gate_interest = gate.split((self.sparse_dim, self.interest_dim), dim=-1)
        refined = torch.cat((gate_sparse * sparse, gate_interest * by_task), dim=-1)
        refined = refined.transpose(0, 1)
        if not return_raw:
            return refined
        raw = torch.cat((sparse.unsqueeze(1).expand(-1, self.num_tasks, -1), interest), dim=-1)
        return raw, refined

    def extra_repr(self) -> str:
        return (
            f"{self.num_tasks}, sparse_dim={self.sparse_dim}, interest_dim={self.interest_dim}, "
            f"hidden_dim={self.hidden_dim}"
        )
