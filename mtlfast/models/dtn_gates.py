"""DTN's gating networks over feature-interaction modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast.nn import stacked_linear
from mtlfast.nn.constants import Constants

GateKind = Literal["paper", "released"]


class InteractionGates(Constants):
    """Two gates per task: one over the modules of its own group, one over all others.

    The gating network of DTN (arXiv 2408.11611, Figure 3C), a single layer: ``softmax(x W + c)``
    over the candidates. Every module is a candidate of exactly one of a task's two gates, so that
    all gates of all tasks are one map to ``[T, n]`` scores and two masked softmaxes.

    "released" is the authors' published code: the score of a candidate is ``relu(A_i w + c)`` of
    its own (scaled) output.

    Args:
        num_tasks: ``T``.
        groups: the group of each of the ``n`` modules, ``T`` for the shared one.
        input_dim: ``D_x``.
        output_dim: ``D_o``.
        kind: "paper" or "released".

    Parameters: ``weight [T, n, D_x]`` (``D_o`` if released), ``bias [T, n]``.
    """

    group_of: Tensor
    candidates: Tensor
    blocked: Tensor

    def __init__(
        self,
        num_tasks: int,
        groups: Sequence[int],
        input_dim: int,
        output_dim: int,
        kind: GateKind,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.num_tasks = num_tasks
        width = input_dim if kind == "paper" else output_dim
        self.weight = nn.Parameter(torch.empty(num_tasks, len(groups), width))
        self._set_groups(groups)
        self.bias = nn.Parameter(torch.empty(num_tasks, len(groups)))
        self.reset_parameters()

    def _set_groups(self, groups: Sequence[int]) -> None:
        self.groups = tuple(groups)

        def own() -> Tensor:
            tasks = torch.arange(self.num_tasks).unsqueeze(1)
            return torch.tensor(self.groups, dtype=torch.int64) == tasks  # [T, n]

        def candidates() -> Tensor:
            return torch.stack((~own(), own()), dim=1)  # [T, 2, n]

        def blocked() -> Tensor:
            # A gate without any candidate gives nothing; its softmax must not see only -inf.
            return ~candidates() & candidates().any(dim=-1, keepdim=True)

        device = self.weight.device
        self.register_constant(
            "group_of", lambda: torch.tensor(self.groups, dtype=torch.int64), device
        )
        self.register_constant("candidates", candidates, device)
        self.register_constant("blocked", blocked, device)

    def keep(self, places: Sequence[int]) -> None:
        """Drop all modules but these; in place."""
        index = torch.tensor(places, dtype=torch.int64, device=self.weight.device)
        self.weight = nn.Parameter(self.weight.detach()[:, index], self.weight.requires_grad)
        self.bias = nn.Parameter(self.bias.detach()[:, index], self.bias.requires_grad)
        self._set_groups([self.groups[place] for place in places])

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, each gate on its own; zero biases."""
        for task in range(self.num_tasks):
            for own in (False, True):
                gate = [n for n, group in enumerate(self.groups) if (group == task) == own]
                if gate:
                    with torch.no_grad():
                        rows = self.weight[task, gate]
                        self.weight[task, gate] = nn.init.xavier_uniform_(rows)
        nn.init.zeros_(self.bias)

    def scores(self, x: Tensor, modules: Tensor) -> Tensor:
        """``[B, T, n]``: logits of the paper's gates, or ``F_i w`` of the released ones.

        Args:
            x: ``[B, D_x]``.
            modules: ``[n, B, D_o]``.
        """
        if self.kind == "paper":
            scores = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
            return scores.unflatten(1, self.bias.shape)
        by_module = stacked_linear(modules, self.weight.transpose(0, 1).contiguous())
        return by_module.permute(1, 2, 0)

    def weights(
        self, scores: Tensor, tasks: slice = slice(None), scale: Tensor | None = None
    ) -> Tensor:
        """``[B, T', 2, n]``: gates over the other groups and over the own; 0 for no candidates.

        Args:
            scores: ``[B, T', n]``, of some tasks.
            tasks: which.
            scale: ``[B, n]``, what the modules are multiplied by; the released gates see it.
        """
        if self.kind == "released":
            if scale is not None:
                scores = scores * scale.unsqueeze(1)
            scores = (scores + self.bias[tasks]).relu()
        scores = scores.unsqueeze(2).masked_fill(self.blocked[tasks], float("-inf"))
        return scores.softmax(dim=-1).masked_fill(~self.candidates[tasks], 0.0)
