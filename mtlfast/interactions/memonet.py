"""MemoNet as an interaction: the embeddings beside what HCNet remembers of their crosses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.interactions.base import Interaction, flatten_fields, per_module
from mtlfast.nn.constants import Constants
from mtlfast.nn.multi_hash_codebook import Hash, MultiHashCodebook, Restoring, Sharing, Shrinking


class MemoNetInteraction(Constants, Interaction):
    """``flatten(E) || flatten(HCNet(selected fields))`` (MemoNet, Zhang et al., CIKM 2023).

    Every one of the ``G`` modules has its own codebooks. Their lookups are one fused op each: the
    modules weight the crosses differently, so that their gathers cannot be merged.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        selected: the fields that are crossed; all when None.
        num_codewords: rows of each codebook.
        codeword_dim: width of a codeword; ``d`` when None.
        num_hashes: hash functions ``m`` of each block.
        num_blocks: independent HCNets, each with its own codebooks and hash functions, side by side
            (the "2 HCNets" of DTN in one reading; the other is ``num_hashes=2``).
        orders, sharing, restoring, shrinking, temperature, key_fields, hash, sparse_grad, backend:
            see :class:`MultiHashCodebook`; ``key_fields`` number the selected fields.
        init_std: standard deviation of the initial codewords.
        num_modules: ``G`` or None, see :class:`Interaction`.
    """

    needs_ids = True
    selected: Tensor

    def __init__(
        self,
        num_fields: int,
        embed_dim: int,
        *,
        selected: Sequence[int] | None = None,
        num_codewords: int = 100_000,
        codeword_dim: int | None = None,
        num_hashes: int = 2,
        num_blocks: int = 1,
        orders: Sequence[int] = (2,),
        sharing: Sharing = "shared",
        restoring: Restoring = "linear",
        shrinking: Shrinking = "attentive",
        temperature: float = 1.0,
        key_fields: Sequence[int] | None = None,
        hash: Hash = "mix64",
        sparse_grad: bool = False,
        init_std: float = 0.01,
        backend: str = "auto",
        num_modules: int | None = None,
    ) -> None:
        check_count("num_blocks", num_blocks)
        chosen = list(range(num_fields)) if selected is None else list(selected)
        if len(set(chosen)) != len(chosen) or any(not 0 <= f < num_fields for f in chosen):
            raise bad("selected", f"distinct fields in [0, {num_fields})", chosen)
        groups = 1 if num_modules is None else num_modules
        width = embed_dim if codeword_dim is None else codeword_dim
        codebooks = [
            MultiHashCodebook(
                len(chosen),
                num_codewords,
                width,
                embed_dim,
                num_hashes=num_hashes,
                orders=orders,
                sharing=sharing,
                restoring=restoring,
                shrinking=shrinking,
                temperature=temperature,
                key_fields=key_fields,
                hash=hash,
                first_hash=block * num_hashes,
                sparse_grad=sparse_grad,
                init_std=init_std,
                backend=backend,
            )
            for _ in range(groups)
            for block in range(num_blocks)
        ]
        first = codebooks[0]
        rows = sum(first.num_crosses) if shrinking == "none" else len(chosen) * len(first.orders)
        total = num_fields * embed_dim + num_blocks * rows * width
        super().__init__(num_fields, embed_dim, total, num_modules)
        self.num_blocks = num_blocks
        self.codebooks = nn.ModuleList(codebooks)
        self.all_selected = chosen == list(range(num_fields))
        self.register_constant("selected", lambda: torch.tensor(chosen))

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        if ids is None:
            raise bad("ids", "the ids of the fields", "None")
        if not self.all_selected:
            ids = ids.index_select(1, self.selected)
        crossed = x if self.all_selected else x.index_select(2, self.selected)
        outs = []
        for g in range(self.num_groups):
            fields = crossed[g if len(crossed) > 1 else 0]
            blocks = self.codebooks[g * self.num_blocks : (g + 1) * self.num_blocks]
            outs.append(torch.cat([block(ids, fields).flatten(1) for block in blocks], dim=-1))
        flat = per_module(flatten_fields(x), self.num_groups)
        return torch.cat((flat, torch.stack(outs)), dim=-1)

    def select(self, modules: Sequence[int]) -> None:
        if self.num_modules is None or any(not 0 <= i < self.num_groups for i in modules):
            raise bad("modules", f"some of {self.num_groups} stacked modules", list(modules))
        self.codebooks = nn.ModuleList(
            self.codebooks[g * self.num_blocks + block]
            for g in modules
            for block in range(self.num_blocks)
        )
        self.num_modules = self.num_groups = len(modules)
