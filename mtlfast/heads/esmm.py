"""ESMM, the entire space multi-task model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlfast.errors import bad
from mtlfast.heads.base import MultiTaskHead
from mtlfast.heads.tree import tree_levels


class ESMM(MultiTaskHead):
    """Probabilities along a funnel are products (Ma et al., SIGIR 2018, Eq. 1).

    Tower ``t`` models the probability of task ``t`` *given* its parent; the logit of a task is that
    of the product over the task and all its ancestors. With click and conversion these are pCTR
    and ``pCTCVR = pCTR * pCVR``, and the cross-entropy of both logits is the paper's loss:
    the conversion tower learns only through the product. The label of a task must imply that of its
    parent. Products are sums of logarithms, and so are their complements::

        log p_t     = log p_parent + log sigmoid(o_t)
        log (1-p_t) = log( (1-p_parent) + p_parent sigmoid(-o_t) )

    Args:
        input_dim: ``D``.
        num_tasks: ``T``.
        parents: the parent of every task, None for a root; the chain ``0 <- 1 <- 2 ...`` when
            not given.
        tower_units: hidden widths of the towers.
        dropout: probability after every hidden activation.
    """

    parents: tuple[int | None, ...]

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        *,
        parents: Sequence[int | None] | None = None,
        tower_units: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        if parents is None:
            parents = [None, *range(num_tasks - 1)]
        if len(parents) != num_tasks:
            raise bad("parents", f"{num_tasks} entries, one per task", len(parents))
        levels = tree_levels(parents)
        super().__init__(input_dim, num_tasks, input_dim, tower_units, dropout)
        self.parents = tuple(parents)
        self.order = [task for level in levels for task in level]

    def task_repr(self, x: Tensor) -> Tensor:
        return x.expand(self.num_tasks, -1, -1)

    def combine(self, outputs: Tensor) -> Tensor:
        """Logits of the products ``[B, T]`` from the towers' ``o_t``."""
        # In half precision the two logarithms of a rare task would cancel to nothing.
        own = outputs.float() if outputs.element_size() < 4 else outputs
        yes: dict[int, Tensor] = {}  # log p_t
        no: dict[int, Tensor] = {}  # log (1 - p_t)
        logits: dict[int, Tensor] = {}
        for task in self.order:
            output, parent = own[:, task], self.parents[task]
            yes[task], no[task] = F.logsigmoid(output), F.logsigmoid(-output)
            if parent is None:
                logits[task] = output
                continue
            no[task] = torch.logaddexp(no[parent], yes[parent] + no[task])
            yes[task] = yes[parent] + yes[task]
            logits[task] = yes[task] - no[task]
        return torch.stack([logits[task] for task in range(self.num_tasks)], dim=1)

    def set_prior(self, positive_rates: Sequence[float]) -> None:
        """Start every tower at the log-odds of its task's rate given its parent."""
        rates = list(positive_rates)
        if len(rates) == self.num_tasks:
            for task in reversed(self.order):
                parent = self.parents[task]
                if parent is not None:
                    rates[task] = min(rates[task] / max(rates[parent], 1e-12), 1.0)
        super().set_prior(rates)
