"""Embeddings of all sparse fields, in one table and one lookup."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast.bags import FieldBags
from mtlfast.errors import bad, can_read
from mtlfast.nn.constants import Constants


class FieldEmbedding(Constants):
    """One embedding width for every field.

    The tables of all fields lie one behind the other in ``weight [rows, d]``, so that the fields of
    a batch are one lookup and their gradient is one tensor. :meth:`table` gives the part of one
    field.

    Id 0 (padding or unknown) of every field is the zero vector and gets no gradient. An id outside
    its field's table is a ValueError in eager mode on CPU; compiled and on other devices nothing
    is read back, and such an id counts as unknown.

    Args:
        vocab_sizes: rows ``K_f`` of each field's table, row 0 included.
        embed_dim: ``d``.
        multi_valued: fields that may have several ids per row, ascending; their embedding is the
            weighted sum over :class:`mtlfast.bags.FieldBags`.
        more_tables: rows of further tables behind those of the fields, for subclasses.
        sparse_grad: the gradient is a sparse COO tensor (uncoalesced), for optimizers that update
            only the rows in use.
        init_std: standard deviation of the initial weights.
    """

    offsets: Tensor
    sizes: Tensor
    bag_columns: Tensor

    def __init__(
        self,
        vocab_sizes: Sequence[int],
        embed_dim: int,
        *,
        multi_valued: Sequence[int] = (),
        more_tables: Sequence[int] = (),
        sparse_grad: bool = False,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        if not vocab_sizes or any(size < 1 for size in vocab_sizes):
            raise bad("vocab_sizes", "at least one field of positive size", list(vocab_sizes))
        if embed_dim < 1:
            raise bad("embed_dim", "a positive int", embed_dim)
        if list(multi_valued) != sorted({f for f in multi_valued if 0 <= f < len(vocab_sizes)}):
            expected = f"ascending fields in [0, {len(vocab_sizes)})"
            raise bad("multi_valued", expected, list(multi_valued))
        self.vocab_sizes = tuple(vocab_sizes)
        self.multi_valued = tuple(multi_valued)
        self.embed_dim = embed_dim
        self.sparse_grad = sparse_grad
        self.init_std = init_std
        starts = [0]
        for size in (*self.vocab_sizes, *more_tables):
            starts.append(starts[-1] + size)
        self._starts = starts
        num_fields = len(self.vocab_sizes)
        for name, numbers in (
            ("offsets", starts[:num_fields]),
            ("sizes", self.vocab_sizes),
            ("bag_columns", self.multi_valued),
        ):
            self.register_constant(name, partial(torch.tensor, numbers, dtype=torch.int64))
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

    def forward(self, sparse: Tensor, bags: FieldBags | None = None) -> Tensor:
        """Embeddings ``[B, F, d]`` of int64 ids ``[B, F]``.

        Args:
            sparse: ids, of multi-valued fields any one.
            bags: all ids of the multi-valued fields, for modules that have such.

        Raises:
            ValueError: a wrong shape; ids out of range where they can be read.
        """
        self._check_shape(sparse)
        if can_read(sparse):
            self._check_ids(sparse)
        if not self.multi_valued and bags is None:
            return self._lookup(self._rows(sparse))
        return self._with_bags(sparse, bags)

    def _with_bags(self, sparse: Tensor, bags: FieldBags | None) -> Tensor:
        batch, fields = sparse.shape[0], len(self.multi_valued)
        if bags is None or not fields:
            found = "none" if bags is None else f"bags of {bags.ids.num_behaviors}"
            raise bad("bags", f"those of the {fields} multi-valued fields", found)
        ids, values = bags.ids, bags.ids.values
        if (ids.num_behaviors, ids.num_users) != (fields, batch) or values.dim() != 1:
            raise bad(
                "bags",
                f"ids [N] of {fields} fields and {batch} rows",
                f"{list(values.shape)} of {ids.num_behaviors} fields and {ids.num_users} rows",
            )
        weights = bags.weights
        if weights is not None:
            if weights.shape != values.shape:
                raise bad("bags", f"weights {list(values.shape)}", list(weights.shape))
            weights = weights.to(self.weight.dtype)
        field = self.bag_columns[ids.segment_ids() // max(batch, 1)]
        sizes = self.sizes[field]
        if can_read(values) and bool(((values < 0) | (values >= sizes)).any()):
            at = int(((values < 0) | (values >= sizes)).nonzero()[0])
            raise bad("bags", f"ids in [0, {int(sizes[at])})", f"values[{at}] = {int(values[at])}")
        rows = torch.where((values > 0) & (values < sizes), values + self.offsets[field], 0)
        pooled = F.embedding_bag(
            rows,
            self.weight,
            ids.offsets[:-1].to(rows.dtype),
            mode="sum",
            sparse=self.sparse_grad,
            per_sample_weights=weights,
            padding_idx=0,
        )
        # Row 0 for the columns that bags fill: it is zero and gets no gradient.
        single = self._rows(sparse).index_fill(1, self.bag_columns, 0)
        pooled = pooled.view(fields, batch, self.embed_dim).transpose(0, 1)
        return self._lookup(single).index_copy(1, self.bag_columns, pooled)

    def _rows(self, sparse: Tensor) -> Tensor:
        # Everything that is no id of its table goes to row 0, which is zero and never trained.
        known = (sparse > 0) & (sparse < self.sizes)
        return torch.where(known, sparse + self.offsets, 0)

    def _lookup(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.weight, padding_idx=0, sparse=self.sparse_grad)

    def _check_shape(self, sparse: Tensor) -> None:
        num_fields = len(self.vocab_sizes)
        if sparse.dim() != 2 or sparse.shape[1] != num_fields:
            raise bad("sparse", f"shape [B, {num_fields}]", list(sparse.shape))

    def _check_ids(self, sparse: Tensor) -> None:
        if not sparse.shape[0]:
            return
        low, high = torch.aminmax(sparse, dim=0)
        if bool(((low < 0) | (high >= self.sizes)).any()):
            wrong = (sparse < 0) | (sparse >= self.sizes)
            row, field = wrong.nonzero()[0].tolist()
            raise bad(
                "sparse",
                f"ids in [0, {self.vocab_sizes[field]}) in field {field}",
                f"sparse[{row}, {field}] = {int(sparse[row, field])}",
            )

    def extra_repr(self) -> str:
        return (
            f"{self.weight.shape[0]} rows, embed_dim={self.embed_dim}, "
            f"fields={len(self.vocab_sizes)}, sparse_grad={self.sparse_grad}"
        )
