"""DHEN, a deep and hierarchical ensemble of interactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, flatten_fields, per_module, xavier_
from mtlfast.nn.stacked import stacked_linear
from mtlfast.ops import conditional_layer_norm

Ensemble = Literal["concat", "sum"]
MakeInteraction = Callable[[int, int, "int | None"], Interaction]
"""``(num_fields, embed_dim, num_modules)`` to an interaction that reads no ids."""


class DHENLayer(nn.Module):
    """One layer: ``LN( ensemble_i(module_i(X)) + shortcut(X) )``, see :class:`DHEN`."""

    def __init__(
        self,
        makers: Sequence[MakeInteraction],
        num_fields: int,
        num_outputs: int,
        embed_dim: int,
        ensemble: Ensemble,
        eps: float,
        num_modules: int | None,
    ) -> None:
        super().__init__()
        groups = 1 if num_modules is None else num_modules
        width = num_outputs * embed_dim
        self.num_outputs = num_outputs
        self.eps = eps
        self.ensemble = ensemble
        parts = [make(num_fields, embed_dim, num_modules) for make in makers]
        for part in parts:
            if part.needs_ids:
                raise bad("modules", "methods that read no ids", type(part).__name__)
        self.parts = nn.ModuleList(parts)
        widths = [part.output_dim for part in parts]
        inputs = [sum(widths)] if ensemble == "concat" else widths
        self.weights = nn.ParameterList(torch.empty(groups, width, n) for n in inputs)
        self.bias = nn.Parameter(torch.empty(groups, width))
        self.shortcut = (
            nn.Parameter(torch.empty(groups, num_outputs, num_fields))
            if num_outputs != num_fields
            else None
        )
        self.norm_weight = nn.Parameter(torch.empty(groups, embed_dim))
        self.norm_bias = nn.Parameter(torch.empty(groups, embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases, identity layer norm."""
        for weight in self.weights:
            xavier_(weight)
        if self.shortcut is not None:
            xavier_(self.shortcut)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[S, B, N, d]`` to ``[G, B, L, d]``."""
        outputs = [cast(Interaction, part).interact(x, None) for part in self.parts]
        if self.ensemble == "concat":
            outputs = [torch.cat(outputs, dim=-1)]
        mixed = stacked_linear(outputs[0], self.weights[0], self.bias)
        for output, weight in zip(outputs[1:], list(self.weights)[1:], strict=True):
            mixed = mixed + stacked_linear(output, weight)
        mixed = mixed.unflatten(-1, (self.num_outputs, -1))
        if self.shortcut is not None:
            x = torch.einsum("gbnd,gln->gbld", per_module(x, mixed.shape[0]), self.shortcut)
        scale, shift = (p[:, None, None] for p in (self.norm_weight, self.norm_bias))
        return conditional_layer_norm(mixed + x, scale, shift, eps=self.eps)


class DHEN(Interaction):
    """Layers of heterogeneous interactions (DHEN, Zhang et al., DLP-KDD 2022)::

        X_0 = the fields [N, d]
        X_(k+1) = LN( ensemble_i( module_i(X_k) ) + shortcut(X_k) )              [L, d]

    Every module's output vector is mapped to ``L*d``. The ensemble "concat" maps the concatenation
    of all outputs, "sum" adds the modules' own maps; the two are the same function and differ in
    how they are initialised (by the total width, or by each module's). The shortcut is the identity
    where ``L = N`` and a linear map over the fields otherwise. The output is flattened,
    ``W = L*d``.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        modules: one maker per module of a layer, ``(num_fields, embed_dim, num_modules)`` to an
            :class:`Interaction` that reads no ids; the same for all layers.
        num_layers: layers.
        num_outputs: ``L``; ``N`` when None.
        ensemble: "concat" or "sum".
        eps: of the layer norms.
        num_modules: ``G`` or None, see :class:`Interaction`.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        modules: Sequence[MakeInteraction],
        num_layers: int = 2,
        num_outputs: int | None = None,
        ensemble: Ensemble = "concat",
        eps: float = 1e-5,
        num_modules: int | None = None,
    ) -> None:
        check_count("num_layers", num_layers)
        if not modules:
            raise bad("modules", "at least one", "none")
        if ensemble not in ("concat", "sum"):
            raise bad("ensemble", "concat or sum", repr(ensemble))
        if not eps > 0:
            raise bad("eps", "a positive number", eps)
        outputs = num_fields if num_outputs is None else num_outputs
        check_count("num_outputs", outputs)
        super().__init__(num_fields, embed_dim, outputs * embed_dim, num_modules)
        inputs = [num_fields, *[outputs] * (num_layers - 1)]
        self.layers = nn.ModuleList(
            DHENLayer(modules, count, outputs, embed_dim, ensemble, eps, num_modules)
            for count in inputs
        )

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return flatten_fields(x)
