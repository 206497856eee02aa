"""Embeddings of all sparse fields and all sequence tokens, in one table and one lookup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast.errors import bad, can_read
from mtlfast.jagged import JaggedSequences


class EmbeddedFeatures(NamedTuple):
    """What :class:`FeatureEmbedding` returns."""

    fields: Tensor
    """``[B, F, d]``."""
    target: Tensor
    """``[B, d]``, the row of the item field."""
    sequences: JaggedSequences
    """Embeddings ``[N, d]``."""


class FeatureEmbedding(nn.Module):
    """One embedding width for every field, DTRN (CIKM 2023) section 3.2.

    The tables of all fields, and of the sequences where they have their own, lie one behind the
    other in ``weight [rows, d]``, so that the fields and all tokens of a batch are one lookup and
    their gradient is one tensor. :meth:`table` gives the part of one field.

    Id 0 (padding or unknown) of every field is the zero vector and gets no gradient. An id outside
    its field's table is a ValueError in eager mode on CPU; compiled and on other devices nothing
    is read back, and such an id counts as unknown.

    Args:
        vocab_sizes: rows ``K_f`` of each field's table, row 0 included.
        embed_dim: ``d``.
        item_field: the field with the target item.
        num_behaviors: ``M``.
        share_item_table: target item and all sequences share one table; otherwise every sequence
            has its own, of the same size.
        sparse_grad: the gradient is a sparse COO tensor (uncoalesced), for optimizers that update
            only the rows in use.
        init_std: standard deviation of the initial weights.
    """

    offsets: Tensor
    sizes: Tensor

    def __init__(
        self,
        vocab_sizes: Sequence[int],
        embed_dim: int,
        *,
        item_field: int,
        num_behaviors: int,
        share_item_table: bool = True,
        sparse_grad: bool = False,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        if not vocab_sizes or any(size < 1 for size in vocab_sizes):
            raise bad("vocab_sizes", "at least one field of positive size", list(vocab_sizes))
        if not 0 <= item_field < len(vocab_sizes):
            raise bad("item_field", f"a field in [0, {len(vocab_sizes)})", item_field)
        for name, size in (("embed_dim", embed_dim), ("num_behaviors", num_behaviors)):
            if size < 1:
                raise bad(name, "a positive int", size)
        self.vocab_sizes = tuple(vocab_sizes)
        self.embed_dim = embed_dim
        self.item_field = item_field
        self.num_behaviors = num_behaviors
        self.share_item_table = share_item_table
        self.sparse_grad = sparse_grad
        self.init_std = init_std

        item_size = self.vocab_sizes[item_field]
        self._table_sizes = list(self.vocab_sizes)
        if not share_item_table:
            self._table_sizes += [item_size] * num_behaviors
        starts = [0]
        for size in self._table_sizes:
            starts.append(starts[-1] + size)
        self._starts = starts
        num_fields = len(self.vocab_sizes)
        token_starts = starts[num_fields:-1] if not share_item_table else []
        self.register_buffer("offsets", torch.tensor(starts[:num_fields]), persistent=False)
        self.register_buffer("sizes", torch.tensor(self.vocab_sizes), persistent=False)
        self.register_buffer(
            "token_offsets", torch.tensor(token_starts, dtype=torch.int64), persistent=False
        )
        self.token_offsets: Tensor
        self.weight = nn.Parameter(torch.empty(starts[-1], embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``N(0, init_std^2)``; row 0 of every table zero."""
        nn.init.normal_(self.weight, std=self.init_std)
        with torch.no_grad():
            self.weight[torch.tensor(self._starts[:-1])] = 0.0

    def table(self, field: int) -> Tensor:
        """The rows ``[K_f, d]`` of one field (a view)."""
        if not 0 <= field < len(self.vocab_sizes):
            raise bad("field", f"a field in [0, {len(self.vocab_sizes)})", field)
        return self.weight[self._starts[field] : self._starts[field + 1]]

    def sequence_table(self, behavior: int) -> Tensor:
        """The rows ``[K_item, d]`` that the tokens of one behavior use (a view)."""
        if not 0 <= behavior < self.num_behaviors:
            raise bad("behavior", f"a behavior in [0, {self.num_behaviors})", behavior)
        if self.share_item_table:
            return self.table(self.item_field)
        first = len(self.vocab_sizes) + behavior
        return self.weight[self._starts[first] : self._starts[first + 1]]

    def forward(self, sparse: Tensor, sequences: JaggedSequences) -> EmbeddedFeatures:
        """Embed a batch.

        Args:
            sparse: ids ``[B, F]``.
            sequences: item ids ``[N]`` of the ``M`` behaviors of ``U`` users.

        Raises:
            ValueError: wrong shapes; ids out of range where they can be read.
        """
        num_fields = len(self.vocab_sizes)
        if sparse.dim() != 2 or sparse.shape[1] != num_fields:
            raise bad("sparse", f"shape [B, {num_fields}]", list(sparse.shape))
        tokens = sequences.values
        if tokens.dim() != 1 or tokens.is_floating_point():
            raise bad("sequences", "item ids of shape [N]", f"{tokens.dtype} {list(tokens.shape)}")
        if sequences.num_behaviors != self.num_behaviors:
            raise bad("sequences", f"{self.num_behaviors} behaviors", sequences.num_behaviors)
        item_size = self.vocab_sizes[self.item_field]
        if can_read(sparse):
            self._check_ids(sparse, tokens)

        # Everything that is no id of its table goes to row 0, which is zero and never trained.
        known = (sparse > 0) & (sparse < self.sizes)
        field_rows = torch.where(known, sparse + self.offsets, 0)
        if self.share_item_table:
            token_rows = tokens + self._starts[self.item_field]
        else:
            behavior = sequences.segment_ids() // max(sequences.num_users, 1)
            token_rows = tokens + self.token_offsets[behavior]
        token_rows = torch.where((tokens > 0) & (tokens < item_size), token_rows, 0)

        rows = torch.cat((field_rows.flatten(), token_rows))
        out = F.embedding(rows, self.weight, padding_idx=0, sparse=self.sparse_grad)
        # split, not two slices: its backward is one concatenation.
        fields, embedded = out.split((field_rows.numel(), token_rows.numel()))
        fields = fields.view(-1, num_fields, self.embed_dim)
        return EmbeddedFeatures(fields, fields[:, self.item_field], sequences.with_values(embedded))

    def _check_ids(self, sparse: Tensor, tokens: Tensor) -> None:
        if sparse.shape[0]:
            low, high = torch.aminmax(sparse, dim=0)
            if bool(((low < 0) | (high >= self.sizes)).any()):
                wrong = (sparse < 0) | (sparse >= self.sizes)
                row, field = wrong.nonzero()[0].tolist()
                raise bad(
                    "sparse",
                    f"ids in [0, {self.vocab_sizes[field]}) in field {field}",
                    f"sparse[{row}, {field}] = {int(sparse[row, field])}",
                )
        if tokens.shape[0]:
            size = self.vocab_sizes[self.item_field]
            low, high = torch.aminmax(tokens)
            if int(low) < 0 or int(high) >= size:
                at = int(((tokens < 0) | (tokens >= size)).nonzero()[0])
                raise bad(
                    "sequences", f"item ids in [0, {size})", f"values[{at}] = {int(tokens[at])}"
                )

    def extra_repr(self) -> str:
        return (
            f"{self.weight.shape[0]} rows, embed_dim={self.embed_dim}, "
            f"fields={len(self.vocab_sizes)}, share_item_table={self.share_item_table}, "
            f"sparse_grad={self.sparse_grad}"
        )
