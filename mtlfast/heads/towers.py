"""One tower per task, computed as a few large matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast.nn.stacked import StackedMLP, stacked_linear


class Towers(nn.Module):
    """One tower per task: hidden layers with ReLU, then one logit.

    Args:
        num_tasks: ``T``.
        input_dim: width of each task's representation.
        units: hidden widths; none for a plain linear output.
        dropout: probability after every activation.
    """

    def __init__(
        self, num_tasks: int, input_dim: int, units: Sequence[int] = (), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = StackedMLP(num_tasks, input_dim, units, dropout)
        self.weight = nn.Parameter(torch.empty(num_tasks, 1, self.hidden.output_dim))
        self.bias = nn.Parameter(torch.empty(num_tasks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights per task, zero biases."""
        self.hidden.reset_parameters()
        for tower in self.weight:
            nn.init.xavier_uniform_(tower)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, tasks: slice | None = None) -> Tensor:
        """``[T, B, in]`` to logits ``[B, T]``; ``tasks`` computes only some of the ``T``."""
        x = self.hidden(x, tasks)
        chosen = slice(None) if tasks is None else tasks
        weight, bias = self.weight[chosen], self.bias[chosen]
        return stacked_linear(x, weight, bias.unsqueeze(1)).squeeze(-1).t()
