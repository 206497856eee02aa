"""Embeddings of all sparse fields and all sequence tokens, in one table and one lookup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtlfast.errors import bad, can_read
from mtlfast.jagged import JaggedSequences
from mtlfast.nn.field_embedding import FieldEmbedding


class EmbeddedFeatures(NamedTuple):
    """What :class:`FeatureEmbedding` returns."""

    fields: Tensor
    """``[B, F, d]``."""
    target: Tensor
    """``[B, d]``, the row of the item field."""
    sequences: JaggedSequences
    """Embeddings ``[N, d]``."""


class FeatureEmbedding(FieldEmbedding):
    """:class:`FieldEmbedding` of fields and histories, DTRN (CIKM 2023) section 3.2.

    The tables of the sequences, where they have their own, lie behind those of the fields, so that
    the fields and all tokens of a batch are one lookup. Token ids follow the rules of the fields'.

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

    token_offsets: Tensor

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
        if vocab_sizes and not 0 <= item_field < len(vocab_sizes):
            raise bad("item_field", f"a field in [0, {len(vocab_sizes)})", item_field)
        if num_behaviors < 1:
            raise bad("num_behaviors", "a positive int", num_behaviors)
        own_tables = bool(vocab_sizes) and not share_item_table
        super().__init__(
            vocab_sizes,
            embed_dim,
            more_tables=[vocab_sizes[item_field]] * num_behaviors if own_tables else (),
            sparse_grad=sparse_grad,
            init_std=init_std,
        )
        self.item_field = item_field
        self.num_behaviors = num_behaviors
        self.share_item_table = share_item_table
        token_starts = self._starts[len(self.vocab_sizes) : -1] if own_tables else []
        self.register_constant(
            "token_offsets", lambda: torch.tensor(token_starts, dtype=torch.int64)
        )

    def sequence_table(self, behavior: int) -> Tensor:
        """The rows ``[K_item, d]`` that the tokens of one behavior use (a view)."""
        if not 0 <= behavior < self.num_behaviors:
            raise bad("behavior", f"a behavior in [0, {self.num_behaviors})", behavior)
        if self.share_item_table:
            return self.table(self.item_field)
        first = len(self.vocab_sizes) + behavior
        return self.weight[self._starts[first] : self._starts[first + 1]]

    def forward(  # type: ignore[override]  # it embeds the histories as well
        self, sparse: Tensor, sequences: JaggedSequences
    ) -> EmbeddedFeatures:
        """Embed a batch.

        Args:
            sparse: ids ``[B, F]``.
            sequences: item ids ``[N]`` of the ``M`` behaviors of ``U`` users.

        Raises:
            ValueError: wrong shapes; ids out of range where they can be read.
        """
        self._check_shape(sparse)
        tokens = sequences.values
        if tokens.dim() != 1 or tokens.is_floating_point():
            raise bad("sequences", "item ids of shape [N]", f"{tokens.dtype} {list(tokens.shape)}")
        if sequences.num_behaviors != self.num_behaviors:
            raise bad("sequences", f"{self.num_behaviors} behaviors", sequences.num_behaviors)
        item_size = self.vocab_sizes[self.item_field]
        if can_read(sparse):
            self._check_ids(sparse)
            self._check_tokens(tokens, item_size)

        field_rows = self._rows(sparse)
        if self.share_item_table:
            token_rows = tokens + self._starts[self.item_field]
        else:
            behavior = sequences.segment_ids() // max(sequences.num_users, 1)
            token_rows = tokens + self.token_offsets[behavior]
        token_rows = torch.where((tokens > 0) & (tokens < item_size), token_rows, 0)

        out = self._lookup(torch.cat((field_rows.flatten(), token_rows)))
        # split, not two slices: its backward is one concatenation.
        fields, embedded = out.split((field_rows.numel(), token_rows.numel()))
        fields = fields.view(-1, len(self.vocab_sizes), self.embed_dim)
        return EmbeddedFeatures(fields, fields[:, self.item_field], sequences.with_values(embedded))

    def _check_tokens(self, tokens: Tensor, size: int) -> None:
        if not tokens.shape[0]:
            return
        low, high = torch.aminmax(tokens)
        if int(low) < 0 or int(high) >= size:
            at = int(((tokens < 0) | (tokens >= size)).nonzero()[0])
            raise bad("sequences", f"item ids in [0, {size})", f"values[{at}] = {int(tokens[at])}")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, share_item_table={self.share_item_table}"
