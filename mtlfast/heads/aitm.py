"""AITM, adaptive information transfer along a tree of tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast._checks import check_units, check_weight
from mtlfast.errors import bad
from mtlfast.heads.base import MultiTaskHead
from mtlfast.heads.tree import tree_levels
from mtlfast.nn.stacked import StackedMLP, stacked_linear


def calibration_penalty(logits: Tensor, parents: Sequence[int | None]) -> Tensor:
    """``mean_n sum_t max(p_t - p_parent(t), 0)`` over tasks that have a parent (AITM Eq. 12).

    Args:
        logits: ``[B, T]``.
        parents: the parent of every task, None for a root.
    """
    children = [task for task, parent in enumerate(parents) if parent is not None]
    above = [parent for parent in parents if parent is not None]
    prob = logits.sigmoid()
    return (prob[:, children] - prob[:, above]).relu().sum(dim=1).mean()


class AITM(MultiTaskHead):
    """Adaptive information transfer (Xi et al., KDD 2021) over a forest of tasks.

    ``q_t = bottom_t(r_t)``; a root has ``z_t = q_t``. Otherwise the parent hands down
    ``p = relu(Linear_t(z_parent))`` and ``z_t`` is the attention over ``{p, q_t}``:
    ``sum_u softmax_u(h2(u) . h3(u) / sqrt(k)) h1(u)``, with ``h1, h2, h3`` linear, without bias
    and shared by all tasks. Tasks of one depth are one batched computation.

    Args:
        input_dim: ``D``.
        num_tasks: ``T``.
        parents: the parent of every task, None for a root; the chain ``0 <- 1 <- 2 ...`` when
            not given.
        bottom_units: widths of the bottom networks; the last is ``k``.
        tower_units: hidden widths of the towers; none for the paper's linear output.
        dropout: probability after every hidden activation.
        calibrator: weight of :func:`calibration_penalty` in :meth:`extra_loss`.
    """

    parents: tuple[int | None, ...]

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        *,
        parents: Sequence[int | None] | None = None,
        bottom_units: Sequence[int] = (128, 64, 32),
        tower_units: Sequence[int] = (),
        dropout: float = 0.0,
        calibrator: float = 0.0,
    ) -> None:
        check_units("bottom_units", bottom_units)
        check_weight("calibrator", calibrator)
        if parents is None:
            parents = [None, *range(num_tasks - 1)]
        if len(parents) != num_tasks:
            raise bad("parents", f"{num_tasks} entries, one per task", len(parents))
        levels = tree_levels(parents)
        super().__init__(input_dim, num_tasks, bottom_units[-1], tower_units, dropout)
        self.parents = tuple(parents)
        self.levels = levels
        self.calibrator = calibrator
        self.bottoms = StackedMLP(num_tasks, input_dim, bottom_units, dropout)
        width = self.repr_dim
        # One row of transfer weights per task that has a parent, in the order of the levels.
        num_children = sum(map(len, levels[1:]))
        if num_children:
            self.transfer_weight = nn.Parameter(torch.empty(num_children, width, width))
            self.transfer_bias = nn.Parameter(torch.empty(num_children, width))
            self.attention_weight = nn.Parameter(torch.empty(3, width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        self.bottoms.reset_parameters()
        self.towers.reset_parameters()
        if len(self.levels) > 1:
            for weight in (*self.transfer_weight, *self.attention_weight):
                nn.init.xavier_uniform_(weight)
            nn.init.zeros_(self.transfer_bias)

    def task_repr(self, x: Tensor) -> Tensor:
        own = self.bottoms(x)  # [T, B, k]
        if len(self.levels) == 1:
            return own
        done: list[Tensor | None] = [None] * self.num_tasks
        for task in self.levels[0]:
            done[task] = own[task]
        first = 0
        for level in self.levels[1:]:
            rows = slice(first, first + len(level))
            first += len(level)
            handed = torch.stack([_known(done, self.parents[task]) for task in level])
            handed = stacked_linear(
                handed, self.transfer_weight[rows], self.transfer_bias[rows], relu=True
            )
            mixed = self._attend(torch.stack((handed, own[level])))
            for i, task in enumerate(level):
                done[task] = mixed[i]
        return torch.stack([_known(done, task) for task in range(self.num_tasks)])

    def _attend(self, pair: Tensor) -> Tensor:
        """``[2, n, B, k]`` to ``[n, B, k]``: attention over axis 0."""
        width = self.repr_dim
        rows = pair.reshape(1, -1, width)
        value, query, key = stacked_linear(rows, self.attention_weight).view(3, *pair.shape)
        score = (query * key).sum(dim=-1, keepdim=True) * width**-0.5
        return (score.softmax(dim=0) * value).sum(dim=0)

    def extra_loss(self, logits: Tensor, labels: Tensor | None = None) -> Tensor | None:
        """The weighted calibration penalty, where its weight is not 0, and that of small towers."""
        small = super().extra_loss(logits, labels)
        if not self.calibrator:
            return small
        penalty = self.calibrator * calibration_penalty(logits, self.parents)
        return penalty if small is None else penalty + small


def _known(done: list[Tensor | None], task: int | None) -> Tensor:
    value = None if task is None else done[task]
    if value is None:
        raise RuntimeError(f"task {task} was read before it was computed")
    return value
