"""What every multi-task head has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast._checks import check_count, check_dropout, check_units, check_weight
from mtlfast.errors import bad
from mtlfast.heads.towers import Towers


class MultiTaskHead(nn.Module, ABC):
    """Logits ``[B, T]`` from one representation per task, or from one for all tasks.

    Given ``[B, T, D]``, every sub-network owned by task ``t`` reads ``r_t``, and every shared
    sub-network is evaluated on ``r_t`` when it serves task ``t`` (DTRN, CIKM 2023, Eq. 10). Given
    ``[B, D]``, or ``T`` equal representations, this is the ordinary head.

    A ``[B, T, D]`` input that lies task by task in memory (``x.transpose(0, 1)`` contiguous) is
    read without a copy.

    Subclasses give the input of the towers. ``input_dim`` is ``D``, ``tower_units`` the hidden
    widths of the towers, ``dropout`` the probability after every hidden activation.
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        repr_dim: int,
        tower_units: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        check_count("input_dim", input_dim)
        check_count("num_tasks", num_tasks)
        check_dropout(dropout)
        check_units("tower_units", tower_units, allow_empty=True)
        self.input_dim = input_dim
        self.num_tasks = num_tasks
        self.repr_dim = repr_dim
        self.towers = Towers(num_tasks, repr_dim, tower_units, dropout)
        self.small_towers: Towers | None = None
        self.small_weight = 0.0
        self._small_logits: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the logits that wait for :meth:`extra_loss`."""
        return {**self.__dict__, "_small_logits": None}

    @abstractmethod
    def task_repr(self, x: Tensor) -> Tensor:
        """``[S, B, D]``, ``S`` = 1 (one input for all tasks) or ``T``, to ``[T, B, repr_dim]``."""

    def combine(self, outputs: Tensor) -> Tensor:
        """Logits ``[B, T]`` from the towers' outputs ``[B, T]``: the same for most heads."""
        return outputs

    @overload
    def forward(self, x: Tensor, *, return_task_repr: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, *, return_task_repr: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, x: Tensor, *, return_task_repr: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits ``[B, T]``.

        Args:
            x: ``[B, T, D]`` or ``[B, D]``.
            return_task_repr: also return the input of the towers ``[B, T, repr_dim]``, as
                ``(logits, task_repr)``.

        Raises:
            ValueError: ``x`` of another shape.
        """
        if x.dim() == 2:
            streams = x.unsqueeze(0)
        elif x.dim() == 3 and x.shape[1] == self.num_tasks:
            streams = x.transpose(0, 1)
        else:
            streams = None
        if streams is None or x.shape[-1] != self.input_dim:
            raise bad(
                "x",
                f"shape [B, {self.num_tasks}, {self.input_dim}] or [B, {self.input_dim}]",
                f"shape {list(x.shape)}",
            )
        task_repr = self.task_repr(streams)
        if self.small_towers is not None and self.training:
            self._small_logits = self.combine(self.small_towers(task_repr))
        logits = self.combine(self.towers(task_repr))
        return (logits, task_repr.transpose(0, 1)) if return_task_repr else logits

    def add_small_towers(self, units: Sequence[int], weight: float) -> None:
        """Add a second, smaller tower per task that only helps training (SmallHeads).

        Wang et al., *Can Small Heads Help? Understanding and Improving Multi-Task Generalization*,
        WWW 2022. It reads what the task's own tower reads and predicts the same label; its
        cross-entropy, times ``weight``, is part of :meth:`extra_loss`.

        Args:
            units: hidden widths; none for a linear output.
            weight: of the added loss.
        """
        check_units("units", units, allow_empty=True)
        check_weight("weight", weight)
        self.small_towers = Towers(self.num_tasks, self.repr_dim, units)
        self.small_weight = weight

    def extra_loss(self, logits: Tensor, labels: Tensor | None = None) -> Tensor | None:
        """What this head adds to the loss of the tasks: None for most.

        Args:
            logits: ``[B, T]``, of the last forward pass.
            labels: ``[B, T]``; small towers need them.

        Raises:
            ValueError: small towers wait for labels of another shape, or for none.
        """
        small, self._small_logits = self._small_logits, None
        if small is None or not self.training:
            return None
        if labels is None or labels.shape != small.shape:
            found = "none" if labels is None else f"shape {list(labels.shape)}"
            raise bad("labels", f"shape {list(small.shape)}", found)
        losses = F.binary_cross_entropy_with_logits(
            small.float() if small.element_size() < 4 else small,
            labels.to(torch.promote_types(small.dtype, torch.float32)),
            reduction="none",
        )
        return self.small_weight * losses.mean(dim=0).sum()

    def set_prior(self, positive_rates: Sequence[float]) -> None:
        """Start every task's output bias at the log-odds of its positive rate."""
        if len(positive_rates) != self.num_tasks:
            raise bad("positive_rates", f"{self.num_tasks} rates", len(positive_rates))
        with torch.no_grad():
            for towers in (self.towers, self.small_towers):
                if towers is not None:
                    towers.bias.copy_(log_odds(positive_rates))


def shared_rows(x: Tensor) -> Tensor:
    """``[S, B, D]`` as ``[1, S*B, D]``, the input of networks that serve all streams."""
    return x.reshape(1, x.shape[0] * x.shape[1], x.shape[2])


def log_odds(rates: Sequence[float]) -> Tensor:
    """``log(p / (1-p))`` in float64, of rates kept away from 0 and 1."""
    return torch.logit(torch.tensor(rates, dtype=torch.float64).clamp(1e-6, 1 - 1e-6))
