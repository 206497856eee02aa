"""ShareBottom."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlfast._checks import check_units
from mtlfast.heads.base import MultiTaskHead, shared_rows
from mtlfast.nn.stacked import StackedMLP


class ShareBottom(MultiTaskHead):
    """``o_t = tower_t(bottom(r_t))``: one bottom network for all tasks (Caruana, 1997).

    Args:
        input_dim: ``D``.
        num_tasks: ``T``.
        bottom_units: widths of the bottom network.
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
        self.bottom = StackedMLP(1, input_dim, bottom_units, dropout)

    def task_repr(self, x: Tensor) -> Tensor:
        out = self.bottom(shared_rows(x)).view(x.shape[0], x.shape[1], self.repr_dim)
        return out.expand(self.num_tasks, -1, -1)
