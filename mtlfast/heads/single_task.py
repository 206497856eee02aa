"""SingleTask: nothing is shared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlfast._checks import check_units
from mtlfast.heads.base import MultiTaskHead
from mtlfast.nn.stacked import StackedMLP


class SingleTask(MultiTaskHead):
    """``o_t = tower_t(bottom_t(r_t))``: one network per task.

    What lies below the head, such as the embeddings, is shared as the model has it; tasks without
    anything in common are models of one task each.

    Args:
        input_dim: ``D``.
        num_tasks: ``T``.
        bottom_units: widths of the bottom networks.
        tower_units: hidden widths of the towers.
        dropout: probability after every hidden activation.
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        *,
        bottom_units: Sequence[int] = (128, 64),
        tower_units: Sequence[int] = (64,),
        dropout: float = 0.0,
    ) -> None:
        check_units("bottom_units", bottom_units)
        super().__init__(input_dim, num_tasks, bottom_units[-1], tower_units, dropout)
        self.bottoms = StackedMLP(num_tasks, input_dim, bottom_units, dropout)

    def task_repr(self, x: Tensor) -> Tensor:
        return self.bottoms(x)
