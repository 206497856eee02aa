"""MaskNet: layer-normed features under a mask that the instance itself makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count, check_dropout, check_units
from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, flatten_fields, per_module, xavier_
from mtlfast.nn.stacked import StackedMLP, stacked_linear
from mtlfast.ops import conditional_layer_norm

MaskStructure = Literal["serial", "parallel"]


class MaskBlocks(nn.Module):
    """``G * K`` mask blocks of one shape, each with its own mask (MaskNet)::

        mask = relu(v Wa + ca) Wp + cp             v: the embeddings [D], never layer-normed
        MB(v, h) = relu( LN( (mask * h) Wb ) )     mask and h [P], MB [units]

    Args:
        num_groups: ``G``.
        num_blocks: ``K``.
        embed_width: ``D``.
        input_dim: ``P``.
        agg_dim: hidden width of the mask, the columns of ``Wa``.
        units: columns of ``Wb``.
        bias: ``Wb`` has a bias.
        eps: of the layer norm.

    Parameters, in ``nn.Linear`` layout with blocks stacked along the rows: ``aggregate_weight
    [G, K*agg_dim, D]``, ``aggregate_bias [G, K*agg_dim]``, ``mask_weight [G, K*P, agg_dim]``,
    ``mask_bias [G, K*P]``, ``weight [G, K*units, P]``, ``bias [G, K*units]`` (or None),
    ``norm_weight`` and ``norm_bias [G, K*units]``.
    """

    def __init__(
        self,
        num_groups: int,
        num_blocks: int,
        embed_width: int,
        input_dim: int,
        agg_dim: int,
        units: int,
        *,
        bias: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.num_blocks = num_blocks
        self.units = units
        self.eps = eps
        agg, mask, out = num_blocks * agg_dim, num_blocks * input_dim, num_blocks * units
        self.aggregate_weight = nn.Parameter(torch.empty(num_groups, agg, embed_width))
        self.aggregate_bias = nn.Parameter(torch.empty(num_groups, agg))
        self.mask_weight = nn.Parameter(torch.empty(num_groups, mask, agg_dim))
        self.mask_bias = nn.Parameter(torch.empty(num_groups, mask))
        self.weight = nn.Parameter(torch.empty(num_groups, out, input_dim))
        self.bias = nn.Parameter(torch.empty(num_groups, out)) if bias else None
        self.norm_weight = nn.Parameter(torch.empty(num_groups, out))
        self.norm_bias = nn.Parameter(torch.empty(num_groups, out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases, identity layer norms."""
        for weight in (self.aggregate_weight, self.mask_weight, self.weight):
            xavier_(weight.unflatten(1, (self.num_blocks, -1)))
        for bias in (self.aggregate_bias, self.mask_bias, self.bias, self.norm_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        nn.init.ones_(self.norm_weight)

    def forward(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """``embeddings [S, B, D]`` and ``hidden [G, B, P]`` to ``[G, B, K*units]``."""
        groups, blocks = self.weight.shape[0], self.num_blocks
        aggregated = stacked_linear(
            embeddings,
            self._blocks(self.aggregate_weight),
            self._blocks(self.aggregate_bias),
            relu=True,
        )  # [G*K, B, agg]
        mask = stacked_linear(
            aggregated, self._blocks(self.mask_weight), self._blocks(self.mask_bias)
        )
        masked = mask.unflatten(0, (groups, blocks)) * hidden.unsqueeze(1)
        bias = None if self.bias is None else self._blocks(self.bias)
        out = stacked_linear(masked.flatten(0, 1), self._blocks(self.weight), bias)
        scale, shift = (self._blocks(p).unsqueeze(1) for p in (self.norm_weight, self.norm_bias))
        out = conditional_layer_norm(out, scale, shift, eps=self.eps).relu()
        if blocks == 1:
            return out
        return out.unflatten(0, (groups, blocks)).transpose(1, 2).flatten(2)

    def _blocks(self, parameter: Tensor) -> Tensor:
        """``[G, K*n, ...]`` as ``[G*K, n, ...]``, a view."""
        return parameter.unflatten(1, (self.num_blocks, -1)).flatten(0, 1)


class MaskNet(Interaction):
    """MaskNet (Wang et al., DLP-KDD 2021), serial or parallel.

    ``H_0`` is the layer norm of every field on its own (with its own scale and shift), flattened.
    Serial: ``H_i = MB_i(v, H_(i-1))``. Parallel: all blocks read ``H_0`` and their outputs are
    concatenated. ``v`` are the raw embeddings. An MLP may follow.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        structure: "serial" or "parallel".
        block_units: width of each block; equal ones in the parallel structure.
        agg_dim: hidden width of the masks; None for ``reduction_ratio`` times the mask's width.
        reduction_ratio: see ``agg_dim``.
        units: widths of the MLP, ReLU after each.
        field_norm: without it ``H_0`` are the raw embeddings.
        block_bias: the blocks' own maps have a bias before the layer norm.
        dropout: probability after every activation of the MLP.
        eps: of the layer norms.
        num_modules: ``G`` or None, see :class:`Interaction`.
    """

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        structure: MaskStructure = "parallel",
        block_units: Sequence[int] = (640,),
        agg_dim: int | None = 640,
        reduction_ratio: float = 1.0,
        units: Sequence[int] = (),
        field_norm: bool = True,
        block_bias: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
        num_modules: int | None = None,
    ) -> None:
        check_units("block_units", block_units)
        check_units("units", units, allow_empty=True)
        check_dropout(dropout)
        if structure not in ("serial", "parallel"):
            raise bad("structure", "serial or parallel", repr(structure))
        if structure == "parallel" and len(set(block_units)) > 1:
            raise bad("block_units", "equal widths of parallel blocks", list(block_units))
        if agg_dim is not None:
            check_count("agg_dim", agg_dim)
        if not reduction_ratio > 0:
            raise bad("reduction_ratio", "a positive number", reduction_ratio)
        if not eps > 0:
            raise bad("eps", "a positive number", eps)
        serial = structure == "serial"
        width = block_units[-1] if serial else sum(block_units)
        super().__init__(num_fields, embed_dim, units[-1] if units else width, num_modules)
        self.structure = structure
        self.eps = eps
        self.field_norm = field_norm
        if field_norm:
            shape = (self.num_groups, num_fields, embed_dim)
            self.field_norm_weight = nn.Parameter(torch.ones(shape))
            self.field_norm_bias = nn.Parameter(torch.zeros(shape))

        def blocks(count: int, input_dim: int, block_width: int) -> MaskBlocks:
            agg = max(1, int(reduction_ratio * input_dim)) if agg_dim is None else agg_dim
            return MaskBlocks(
                self.num_groups,
                count,
                self.input_dim,
                input_dim,
                agg,
                block_width,
                bias=block_bias,
                eps=eps,
            )

        if serial:
            inputs = [self.input_dim, *block_units[:-1]]
            stages = [blocks(1, *widths) for widths in zip(inputs, block_units, strict=True)]
        else:
            stages = [blocks(len(block_units), self.input_dim, block_units[0])]
        self.blocks = nn.ModuleList(stages)
        self.mlp = StackedMLP(self.num_groups, width, units, dropout)

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        embeddings = flatten_fields(x)
        if self.field_norm:
            scale, shift = (p.unsqueeze(1) for p in (self.field_norm_weight, self.field_norm_bias))
            hidden = conditional_layer_norm(x, scale, shift, eps=self.eps).flatten(2)
        else:
            hidden = per_module(embeddings, self.num_groups)
        for block in self.blocks:
            hidden = block(embeddings, hidden)
        return self.mlp(hidden)
