"""MemoNet's HCNet: feature crosses remembered in a codebook that hash functions address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast._checks import check_count
from mtlfast.errors import bad, number, shape_text
from mtlfast.nn.constants import Constants
from mtlfast.ops import FusedStep, field_crosses, multi_hash_lookup
from mtlfast.ops.multi_hash_lookup import check_codebook

# Attentive weights that exist at a time while nothing is differentiated: 16 MiB of float32.
_MOST_ATTENTIVE_WEIGHTS = 1 << 22

Sharing = Literal["shared", "private"]
Restoring = Literal["linear", "attentive"]
Shrinking = Literal["attentive", "softmax", "sum", "none"]
Hash = Literal["mix64", "siphash"]


class ShrunkCrosses(NamedTuple):
    """What :meth:`MultiHashCodebook.forward` returns when the weights are asked for."""

    out: Tensor
    """``[B, F * len(orders), out_dim]``; ``[B, P, out_dim]`` without shrinking."""
    pair_weights: tuple[Tensor | None, ...]
    """Per order: ``[B, P]``, ``[B, P, order]`` with softmax shrinking, None where all are 1."""


class TwoLinear(nn.Module):
    """``ReLU(x W1) W2`` without biases."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_dim, hidden_dim, bias=False)
        self.linear2 = nn.Linear(hidden_dim, out_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-normal."""
        nn.init.xavier_normal_(self.linear1.weight)
        nn.init.xavier_normal_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(x)))


class MultiHashCodebook(Constants):
    """HCNet: crossed fields, hashed into codewords, restored, and shrunk to one vector per field.

    Source: MemoNet (CIKM 2023). Every pair of fields is hashed ``num_hashes`` times into a
    codebook; its codewords ``c_p`` side by side are the memory of the pair. With ``v_f`` the
    ordinary embeddings::

        restoring   linear     m_p = c_p Wr
                    attentive  m_p = (c_p * (ReLU((v_f1 | v_f2) Z1) Z2)) Wr
        shrinking   attentive  out_f = sum of a_p m_p over the pairs p of field f,
                               a = ReLU(flatten(v) Y1) Y2
                    softmax    the same with softmax(a / temperature) over the pairs of each field
                    sum        a = 1
                    none       out_p = m_p

    Wr is linear and without bias, so the pairs are shrunk first and restored then: nothing of size
    ``[B, P, m, c]`` exists, forward or backward. Attentive restoring itself is such a size: its
    weights are made for some samples at a time in inference, and kept for the backward in training.

    Args:
        num_fields: ``F``.
        num_codewords: ``n``, rows of each codebook.
        codeword_dim: ``c``.
        embed_dim: width of the fields' ordinary embeddings.
        out_dim: width of the result; ``codeword_dim`` when None.
        num_hashes: hash functions ``m``.
        orders: how many fields are crossed: (2,), (3,) or (2, 3); each has its own codebooks.
        sharing: the hash functions of an order share one codebook, or each has a private one.
        restoring: "linear" or "attentive".
        shrinking: "attentive", "softmax", "sum" or "none".
        temperature: of the softmax shrinking.
        key_fields: keep only pairs with at least one of these fields; with orders=(2,) only.
        hash: "mix64", or "siphash" as MemoNet's published code (on CPU only).
        first_hash: number of the first hash function: blocks that should not collide alike start
            at different ones.
        sparse_grad: the codebook's gradient is a coalesced COO tensor over (order, book, row).
        init_std: standard deviation of the initial codewords.
        backend: implementation of the lookup; see :func:`mtlfast.explain`.

    :class:`FusedAdagrad` and :class:`FusedAdam` update the codebook during the backward, for a
    small part of the time that its gradient and an optimizer's step take.

    Raises:
        ValueError: for sizes that are not positive or an unknown option.
    """

    def __init__(
        self,
        num_fields: int,
        num_codewords: int,
        codeword_dim: int,
        embed_dim: int,
        *,
        out_dim: int | None = None,
        num_hashes: int = 2,
        orders: Sequence[int] = (2,),
        sharing: Sharing = "shared",
        restoring: Restoring = "linear",
        shrinking: Shrinking = "attentive",
        temperature: float = 1.0,
        key_fields: Sequence[int] | None = None,
        hash: Hash = "mix64",
        first_hash: int = 0,
        sparse_grad: bool = False,
        init_std: float = 0.01,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        out_dim = codeword_dim if out_dim is None else out_dim
        for name, size in (
            ("num_fields", num_fields),
            ("num_codewords", num_codewords),
            ("codeword_dim", codeword_dim),
            ("embed_dim", embed_dim),
            ("out_dim", out_dim),
            ("num_hashes", num_hashes),
        ):
            check_count(name, size)
        for name, value, options in (
            ("sharing", sharing, get_args(Sharing)),
            ("restoring", restoring, get_args(Restoring)),
            ("shrinking", shrinking, get_args(Shrinking)),
            ("hash", hash, get_args(Hash)),
        ):
            if value not in options:
                raise bad(name, f"one of {options}", repr(value))
        check_codebook(num_codewords, num_hashes, hash, first_hash)
        if not temperature > 0:
            raise bad("temperature", "a positive float", temperature)
        orders = tuple(orders)
        if not orders or len(set(orders)) != len(orders):
            raise bad("orders", "distinct orders, at least one", list(orders))
        if key_fields is not None and orders != (2,):
            raise bad("key_fields", "None unless orders is (2,)", list(key_fields))

        self.num_fields = num_fields
        self.num_codewords = num_codewords
        self.codeword_dim = codeword_dim
        self.embed_dim = embed_dim
        self.out_dim = out_dim
        self.num_hashes = num_hashes
        self.orders = orders
        self.sharing = sharing
        self.restoring = restoring
        self.shrinking = shrinking
        self.temperature = float(temperature)
        self.key_fields = None if key_fields is None else tuple(key_fields)
        self.hash = hash
        self.first_hash = first_hash
        self.sparse_grad = sparse_grad
        self.init_std = init_std
        self.backend = backend
        self.fused_step: Callable[[Tensor, int], FusedStep] | None = None
        crosses = [field_crosses(num_fields, order, self.key_fields) for order in orders]
        self.num_crosses = tuple(len(found) for found in crosses)

        books = num_hashes if sharing == "private" else 1
        self.codebook = nn.Parameter(torch.empty(len(orders), books, num_codewords, codeword_dim))
        self.restore = nn.Linear(num_hashes * codeword_dim, out_dim, bias=False)
        self.attend = nn.ModuleList()
        if restoring == "attentive":
            for order in orders:
                width = order * embed_dim
                self.attend.append(TwoLinear(width, width, num_hashes * codeword_dim))
        self.shrink = nn.ModuleList()
        if shrinking in ("attentive", "softmax"):
            width = num_fields * embed_dim
            for count in self.num_crosses:
                self.shrink.append(TwoLinear(width, width, count))
        for i, found in enumerate(crosses):
            with torch.device("cpu"):
                members = torch.tensor(found)  # [P, order]
                of_field, place = pairs_of_fields(members, num_fields)
            for name, table in (
                ("members", members),
                ("pairs_of_field", of_field),
                ("place", place),
            ):
                self.register_constant(f"{name}{i}", table.clone)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``N(0, init_std^2)`` codewords, Glorot-normal maps."""
        nn.init.normal_(self.codebook, std=self.init_std)
        nn.init.xavier_normal_(self.restore.weight)
        for module in (*self.attend, *self.shrink):
            assert isinstance(module, TwoLinear)
            module.reset_parameters()

    @overload
    def forward(
        self, ids: Tensor, embeddings: Tensor, *, return_weights: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def forward(
        self, ids: Tensor, embeddings: Tensor, *, return_weights: bool
    ) -> Tensor | ShrunkCrosses: ...

    def forward(
        self, ids: Tensor, embeddings: Tensor, *, return_weights: bool = False
    ) -> Tensor | ShrunkCrosses:
        """Memories of the fields ``[B, F * len(orders), out_dim]``, order by order.

        ``[B, P, out_dim]``, all crosses of all orders, with ``shrinking="none"``.

        Args:
            ids: int64 ``[B, F]``, not negative.
            embeddings: ``[B, F, embed_dim]``.
            return_weights: return :class:`ShrunkCrosses` instead.

        Raises:
            ValueError: wrong shapes, and everything that :func:`mtlfast.ops.multi_hash_lookup`
                refuses.
        """
        if ids.dim() != 2 or ids.shape[1] != self.num_fields:
            raise bad("ids", f"shape [B, {self.num_fields}]", f"shape {shape_text(ids)}")
        expected = (ids.shape[0], self.num_fields, self.embed_dim)
        if embeddings.dim() != 3 or tuple(embeddings.shape) != expected:
            raise bad(
                "embeddings",
                f"shape [B = {number(ids.shape[0])}, {self.num_fields}, {self.embed_dim}]",
                f"shape {shape_text(embeddings)}",
            )
        weights = tuple(self.pair_weights(i, embeddings) for i in range(len(self.orders)))
        shrunk = [
            self._lookup(i, books, ids, embeddings, weights[i])
            for i, books in enumerate(self._codebooks())
        ]
        out = self.restore(shrunk[0] if len(shrunk) == 1 else torch.cat(shrunk, dim=1))
        return ShrunkCrosses(out, weights) if return_weights else out

    def pair_weights(self, i: int, embeddings: Tensor) -> Tensor | None:
        """The shrinking weights of the ``i``-th order: ``[B, P]``, ``[B, P, order]`` or None."""
        if self.shrinking not in ("attentive", "softmax"):
            return None
        weights = self.shrink[i](embeddings.flatten(1))  # [B, P]
        if self.shrinking == "attentive":
            return weights
        of_field = self.get_buffer(f"pairs_of_field{i}")  # [F, most pairs of a field], P = none
        logits = weights if weights.dtype == torch.float64 else weights.float()
        padded = F.pad(logits / self.temperature, (0, 1), value=float("-inf"))
        shares = padded[:, of_field].softmax(-1).flatten(1)
        return shares[:, self.get_buffer(f"place{i}")].to(weights.dtype)  # [B, P, order]

    def codeword_weights(self, i: int, embeddings: Tensor) -> Tensor | None:
        """The attentive restoring's weights of the ``i``-th order: ``[B, P, m*c]`` or None."""
        if self.restoring != "attentive":
            return None
        members = self.get_buffer(f"members{i}")
        return self.attend[i](embeddings[:, members].flatten(2))

    def _codebooks(self) -> Sequence[Tensor]:
        """The codebooks ``[K, n, c]`` of every order."""
        if self.sparse_grad and self.fused_step is None:
            hooks = getattr(self.codebook, "_post_accumulate_grad_hooks", None) or {}
            if self.codebook.requires_grad and _keep_coalesced not in hooks.values():
                self.codebook.register_post_accumulate_grad_hook(_keep_coalesced)
            return [_OneOrder.apply(self.codebook, i) for i in range(len(self.orders))]
        # A view of all has no copy in its backward, as codebook[0] would.
        return [self.codebook.flatten(0, 1)] if len(self.orders) == 1 else self.codebook.unbind()

    def _lookup(
        self,
        i: int,
        codebook: Tensor,
        ids: Tensor,
        embeddings: Tensor,
        pair_weights: Tensor | None,
    ) -> Tensor:
        chunk = self._samples_at_once(i)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(ids) <= chunk:
            return self._lookup_of(i, codebook, ids, embeddings, pair_weights)
        starts = range(0, len(ids), chunk)
        return torch.cat(
            [
                self._lookup_of(
                    i,
                    codebook,
                    ids[start : start + chunk],
                    embeddings[start : start + chunk],
                    None if pair_weights is None else pair_weights[start : start + chunk],
                )
                for start in starts
            ]
        )

    def _samples_at_once(self, i: int) -> int:
        """For how many samples attentive weights are made at a time, without gradients."""
        if self.restoring != "attentive":
            return 1 << 62
        per_sample = self.num_crosses[i] * self.num_hashes * self.codeword_dim
        return max(1, _MOST_ATTENTIVE_WEIGHTS // per_sample)

    def _lookup_of(
        self,
        i: int,
        codebook: Tensor,
        ids: Tensor,
        embeddings: Tensor,
        pair_weights: Tensor | None,
    ) -> Tensor:
        return multi_hash_lookup(
            ids,
            codebook,
            num_hashes=self.num_hashes,
            order=self.orders[i],
            pair_weights=pair_weights,
            codeword_weights=self.codeword_weights(i, embeddings),
            key_fields=self.key_fields,
            hash=self.hash,
            pool=self.shrinking != "none",
            first_hash=self.first_hash,
            sparse_grad=self.sparse_grad,
            fused_step=self._step_of(i),
            backend=self.backend,
        )

    def _step_of(self, i: int) -> Callable[[], FusedStep] | None:
        """The optimizer's step in the backward of the ``i``-th order, where there is one."""
        step, codebook = self.fused_step, self.codebook
        return None if step is None else lambda: step(codebook, i)

    def extra_repr(self) -> str:
        return (
            f"{self.num_fields}, {self.num_codewords}, {self.codeword_dim}, {self.embed_dim}, "
            f"num_hashes={self.num_hashes}, orders={self.orders}, sharing={self.sharing!r}, "
            f"restoring={self.restoring!r}, shrinking={self.shrinking!r}, "
            f"key_fields={self.key_fields}, hash={self.hash!r}, sparse_grad={self.sparse_grad}, "
            f"backend={self.backend!r}"
        )


class _OneOrder(torch.autograd.Function):
    """``codebook[i]`` for sparse gradients over (book, row): adds the order in front."""

    @staticmethod
    def forward(ctx: Any, codebook: Tensor, i: int) -> Tensor:
        ctx.shape, ctx.order = codebook.shape, i
        return codebook[i]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        indices = F.pad(grad.indices(), (0, 0, 1, 0), value=ctx.order)
        return _coalesced(indices, grad.values(), ctx.shape), None


def _coalesced(indices: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    return torch.sparse_coo_tensor(
        indices, values, shape, check_invariants=False, is_coalesced=True
    )


def _keep_coalesced(codebook: Tensor) -> None:
    """Torch accumulates a coalesced gradient into ``grad`` without saying that it is coalesced."""
    grad = codebook.grad
    if grad is None or not grad.is_sparse or grad.is_coalesced():
        return
    _, books, rows, _ = grad.shape
    order, book, row = indices = grad._indices()
    flat = (order * books + book) * rows + row
    if bool((flat[1:] > flat[:-1]).all()):
        codebook.grad = _coalesced(indices, grad._values(), grad.shape)
    else:
        codebook.grad = grad.coalesce()


def pairs_of_fields(members: Tensor, num_fields: int) -> tuple[Tensor, Tensor]:
    """Which pairs contain each field, and where a pair stands in the lists of its members.

    Returns:
        ``[F, W]``, the pairs of every field, filled with ``P``; and ``[P, order]``, positions in
        that table flattened.
    """
    lists: list[list[int]] = [[] for _ in range(num_fields)]
    for pair, fields in enumerate(members.tolist()):
        for field in fields:
            lists[field].append(pair)
    width = max(map(len, lists))
    table = torch.full((num_fields, width), len(members))
    place = torch.zeros_like(members)
    for field, pairs in enumerate(lists):
        table[field, : len(pairs)] = torch.tensor(pairs)
        for at, pair in enumerate(pairs):
            place[pair, members[pair].tolist().index(field)] = field * width + at
    return table, place
