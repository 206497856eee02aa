"""Optimizers of a recommendation model: few dense weights, few rows of large embedding tables.

A batch touches some ten thousand rows of a table with hundreds of thousands. Dense Adam moves
the whole table and both its moments through memory at every step; the row-wise optimizers here
touch only the rows of the batch.

Repeated ids in the gradient are summed by :func:`coalesce_rows`: one stable sort of the ids and
one ``embedding_bag``, which sums the rows of each id in their order of appearance. That is several
times faster than ``Tensor.coalesce`` on CPU, and has the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "RowwiseAdagrad",
    "RowwiseAdam",
    "build_optimizers",
    "coalesce_rows",
    "embedding_tables",
]

EMBEDDING_OPTIMIZERS = ("sparse_adam", "rowwise_adagrad", "dense")


def coalesce_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of a sparse gradient, and the sum of the gradient of each.

    Args:
        grad: sparse COO ``[K, d]`` with one sparse dimension, coalesced or not.

    Returns:
        rows int64 ``[R]``, ascending; values ``[R, d]`` in the gradient's dtype.
    """
    ids, values = grad._indices()[0], grad._values()
    if grad.is_coalesced() or ids.numel() == 0:
        return ids, values
    ordered, permutation = torch.sort(ids, stable=True)
    rows, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = torch.cumsum(counts, 0).sub_(counts)
    return rows, F.embedding_bag(permutation, values, starts, mode="sum")


class _RowwiseOptimizer(Optimizer):
    """Walks over the tables and hands each its distinct rows and their gradients."""

    def __init__(self, params: Iterable[Tensor], defaults: dict[str, Any]) -> None:
        for name in ("lr", "eps"):
            if not defaults[name] >= 0:
                raise ValueError(f"{name}: expected at least 0, found {defaults[name]}")
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the rows that the gradient of each table names."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                if not table.grad.is_sparse:
                    raise ValueError(
                        f"{type(self).__name__}: expected sparse gradients "
                        "(nn.Embedding(sparse=True)), found a dense one"
                    )
                rows, values = coalesce_rows(table.grad)
                if not self.state[table]:
                    self._start(table, self.state[table])
                self._update(table, rows, values, self.state[table], group)
        return loss

    def _start(self, table: Tensor, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def _update(
        self,
        table: Tensor,
        rows: Tensor,
        values: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
    ) -> None:
        raise NotImplementedError


class RowwiseAdam(_RowwiseOptimizer):
    """Lazy Adam for embedding tables: the update of ``torch.optim.SparseAdam``, faster.

    Only the rows of the batch are decayed and moved; the bias correction counts all steps.

    Args:
        params: tables ``[K, d]`` whose gradients are sparse.
        lr: step size.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: expected two values in [0, 1), found {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def _start(self, table: Tensor, state: dict[str, Any]) -> None:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(table)
        state["exp_avg_sq"] = torch.zeros_like(table)

    def _update(
        self,
        table: Tensor,
        rows: Tensor,
        values: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
    ) -> None:
        beta1, beta2 = group["betas"]
        state["step"] += 1
        first = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - beta1)
        second = state["exp_avg_sq"].index_select(0, rows)
        second.mul_(beta2).addcmul_(values, values, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, first)
        state["exp_avg_sq"].index_copy_(0, rows, second)
        bias1, bias2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        first.div_(second.sqrt_().add_(group["eps"]))
        table.index_add_(0, rows, first, alpha=-group["lr"] * bias2**0.5 / bias1)


class RowwiseAdagrad(_RowwiseOptimizer):
    """Adagrad with one accumulator per row: the mean square of the row's gradient.

    The usual choice for very large tables: its state is 1/d of the table, Adam's twice the table.

    Args:
        params: tables ``[K, d]`` whose gradients are sparse.
        lr: step size.
        eps: added to the root of the accumulator.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-2, eps: float = 1e-10) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    def _start(self, table: Tensor, state: dict[str, Any]) -> None:
        state["sum"] = table.new_zeros(table.shape[0])

    def _update(
        self,
        table: Tensor,
        rows: Tensor,
        values: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
    ) -> None:
        total = state["sum"].index_select(0, rows).add_(values.square().mean(1))
        state["sum"].index_copy_(0, rows, total)
        step = values / total.sqrt_().add_(group["eps"]).unsqueeze(1)
        table.index_add_(0, rows, step, alpha=-group["lr"])


def embedding_tables(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """The embedding tables of ``model``: module, name of its switch for sparse gradients, weight.

    A table is an ``nn.Embedding``, or any module with a two-dimensional ``weight`` and a switch
    ``sparse_grad``.
    """
    for module in model.modules():
        switch = "sparse" if isinstance(module, nn.Embedding) else "sparse_grad"
        weight = getattr(module, "weight", None)
        if hasattr(module, switch) and isinstance(weight, nn.Parameter) and weight.dim() == 2:
            yield module, switch, weight


def build_optimizers(
    model: nn.Module,
    *,
    learning_rate: float,
    embedding_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    embedding_optimizer: str = "sparse_adam",
    sparse_min_rows: int = 100_000,
) -> list[Optimizer]:
    """Adam for the dense weights and the small tables, a row-wise optimizer for the large tables.

    Switches the large tables to sparse gradients, and the others to dense ones.

    Args:
        weight_decay: of Adam on the dense part; the row-wise optimizers have none.
        embedding_optimizer: "sparse_adam", "rowwise_adagrad", or "dense" (Adam for everything).
        sparse_min_rows: tables with fewer rows stay dense, which is faster for them.

    Returns:
        One or two optimizers.

    Raises:
        ValueError: for an unknown ``embedding_optimizer``.
    """
    if embedding_optimizer not in EMBEDDING_OPTIMIZERS:
        raise ValueError(
            f"embedding_optimizer: expected one of {', '.join(EMBEDDING_OPTIMIZERS)}, "
            f"found {embedding_optimizer!r}"
        )
    large: list[Tensor] = []
    for table, switch, weight in embedding_tables(model):
        is_large = embedding_optimizer != "dense" and weight.shape[0] >= sparse_min_rows
        setattr(table, switch, is_large)
        if is_large and all(weight is not other for other in large):
            large.append(weight)
    taken = {id(weight) for weight in large}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]

    optimizers: list[Optimizer] = []
    if dense:
        optimizers.append(
            torch.optim.Adam(dense, lr=learning_rate, weight_decay=weight_decay, fused=True)
        )
    rate = learning_rate if embedding_learning_rate is None else embedding_learning_rate
    if large:
        adam = embedding_optimizer == "sparse_adam"
        optimizers.append(RowwiseAdam(large, rate) if adam else RowwiseAdagrad(large, rate))
    return optimizers
