"""What every feature-interaction method has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.errors import bad, describe


class Interaction(nn.Module, ABC):
    """One method of feature interaction, as one module or as several independent ones.

    ``G`` modules of one method read the same fields and share nothing else; they are computed
    together, one matrix product per layer for all of them. Every parameter has ``G`` as its first
    dimension.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        output_dim: ``W``, the width of a module's output.
        num_modules: ``G``; None for a single module whose output has no dimension for it.
    """

    needs_ids = False
    """Whether ``forward`` must be given the ids of the fields."""

    def __init__(
        self, num_fields: int, embed_dim: int, output_dim: int, num_modules: int | None = None
    ) -> None:
        super().__init__()
        check_count("num_fields", num_fields)
        check_count("embed_dim", embed_dim)
        if num_modules is not None:
            check_count("num_modules", num_modules)
        self.num_fields = num_fields
        self.embed_dim = embed_dim
        self.input_dim = num_fields * embed_dim
        self.output_dim = output_dim
        self.num_modules = num_modules
        self.num_groups = 1 if num_modules is None else num_modules

    def forward(self, fields: Tensor, ids: Tensor | None = None) -> Tensor:
        """``[B, W]``, or ``[G, B, W]`` where ``num_modules`` was given.

        Args:
            fields: embeddings ``[B, N, d]``.
            ids: int64 ids ``[B, N]``; read by methods with ``needs_ids``, ignored by the others.

        Raises:
            ValueError: wrong shapes, or ids missing.
        """
        if fields.dim() != 3 or fields.shape[1:] != (self.num_fields, self.embed_dim):
            raise bad(
                "fields",
                f"shape [B, {self.num_fields}, {self.embed_dim}]",
                f"shape {list(fields.shape)}",
            )
        if self.needs_ids:
            self._check_ids(fields, ids)
        out = self.interact(fields.unsqueeze(0), ids)
        return out[0] if self.num_modules is None else out

    def _check_ids(self, fields: Tensor, ids: Tensor | None) -> None:
        if ids is None or ids.dtype != torch.int64 or ids.shape != fields.shape[:2]:
            raise bad(
                "ids",
                f"an int64 tensor of shape [{fields.shape[0]}, {self.num_fields}]",
                describe(ids),
            )

    @abstractmethod
    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        """``[S, B, N, d]``, ``S`` = 1 (one input for all modules) or ``G``, to ``[G, B, W]``."""

    def select(self, modules: Sequence[int]) -> None:
        """Keep only these of the ``G`` modules, in this order; in place."""
        if self.num_modules is None or any(not 0 <= i < self.num_groups for i in modules):
            raise bad("modules", f"some of {self.num_groups} stacked modules", list(modules))
        _keep_rows(self, list(modules))
        self.num_modules = self.num_groups = len(modules)

    def extra_repr(self) -> str:
        groups = "" if self.num_modules is None else f", num_modules={self.num_modules}"
        return f"{self.num_fields} x {self.embed_dim} -> {self.output_dim}{groups}"


def flatten_fields(x: Tensor) -> Tensor:
    """``[S, B, N, d]`` as ``[S, B, N*d]``."""
    return x.flatten(2)


def per_module(x: Tensor, num_groups: int) -> Tensor:
    """``[S, ...]`` as ``[G, ...]``, without a copy."""
    return x.expand(num_groups, *x.shape[1:])


def xavier_(weight: Tensor) -> None:
    """Xavier-uniform over the last two dimensions ``[out, in]``, each matrix on its own."""
    if weight.dim() == 2:
        nn.init.xavier_uniform_(weight)
        return
    for part in weight.detach():  # views, whatever the strides
        xavier_(part)


def _keep_rows(module: nn.Module, rows: list[int]) -> None:
    index = torch.tensor(rows, dtype=torch.int64)
    for name, parameter in list(module.named_parameters(recurse=False)):
        kept = parameter.detach()[index.to(parameter.device)]
        setattr(module, name, nn.Parameter(kept, parameter.requires_grad))
    for child in module.children():
        if isinstance(child, Interaction):
            child.select(rows)
        else:
            _keep_rows(child, rows)
