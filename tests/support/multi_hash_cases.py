"""Inputs of the multi-hash ops, and their definition a second time, in Python integers."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mtlfast.reference import multi_hash_indices

# (fields and ids, num_codewords, indices of hash functions 0, 1, ...)
CHECK_VALUES = [
    ({0: 5, 1: 7}, 10**6, [840743, 767265, 270989]),
    ({3: 12345, 16: 987654}, 10**6, [257854, 593718, 41935]),
    ({0: 0, 1: 0, 2: 0}, 10**6, [761417, 207117, 594202]),
    ({0: 2**40 + 3, 5: 2**63 - 1}, 10**6, [291890, 535365, 107177]),
    ({0: 5, 1: 7}, 2**31 - 1, [1805483657, 1647689297]),
]
SIPHASH_CHECK_VALUES = [
    ({0: 5, 1: 7}, 10**6, [622752, 684346]),
    ({0: 5, 1: 8}, 10**6, [424153, 507037]),
    ({3: 12345, 16: 987654}, 10**6, [767662, 627219]),
]


def check_arguments(ids: dict[int, int]) -> tuple[Tensor, int, int]:
    """``(ids [2, F], order, position of the cross)`` that ask for one check value, in row 1."""
    num_fields, order = max(ids) + 1, len(ids)
    row = [ids.get(f, 17) for f in range(num_fields)]
    crosses = list(itertools.combinations(range(num_fields), order))
    return torch.tensor([[3] * num_fields, row]), order, crosses.index(tuple(ids))


_MASK = 2**64 - 1
_GOLD = 0x9E3779B97F4A7C15


def _mix64(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def integer_index(cross: Sequence[tuple[int, int]], hash_number: int, num_codewords: int) -> int:
    """The codeword of ``[(field, id), ...]`` by Python's integers."""
    h = _mix64((hash_number + 1) * _GOLD & _MASK)
    for f, value in cross:
        h = _mix64(h ^ _mix64((value + (f + 1) * _GOLD) & _MASK))
    return (h >> 32) * num_codewords >> 32


FLOATING = ("codebook", "pair_weights", "codeword_weights")


@dataclass
class Case:
    """The arguments of one lookup; ``tensors`` holds the floating ones, some may be missing."""

    ids: Tensor
    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def call(self, op: Callable[..., Tensor], **others: Any) -> Tensor:
        tensors = dict(self.tensors)
        return op(self.ids, tensors.pop("codebook"), **tensors, **self.options, **others)

    def to(self, dtype: torch.dtype) -> Case:
        leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in self.tensors.items()}
        return replace(self, tensors=leaves)

    def samples(self, rows: slice) -> Case:
        """The same codebook, and some samples of the batch."""
        leaves = {
            n: t if n == "codebook" else t.detach()[rows].requires_grad_()
            for n, t in self.tensors.items()
        }
        return replace(self, ids=self.ids[rows], tensors=leaves)

    def gradients(self, out: Tensor, upstream: Tensor, **options: Any) -> dict[str, Tensor]:
        found = torch.autograd.grad(out, list(self.tensors.values()), upstream, **options)
        return dict(zip(self.tensors, found, strict=True))


def crosses_of(num_fields: int, order: int, key_fields: Sequence[int] | None) -> list[tuple]:
    found = itertools.combinations(range(num_fields), order)
    return [c for c in found if key_fields is None or set(c) & set(key_fields)]


def make(
    batch: int = 7,
    num_fields: int = 5,
    num_codewords: int = 40,
    width: int = 16,
    *,
    num_hashes: int = 2,
    order: int = 2,
    private: bool = False,
    pair_weights: str = "none",
    codeword_weights: bool = False,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    pool: bool = True,
    first_hash: int = 0,
    vocabulary: int = 9,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """``pair_weights`` is "none", "shared" ``[B, P]`` or "member" ``[B, P, order]``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).requires_grad_()

    ids = torch.randint(0, vocabulary, (batch, num_fields), generator=generator)
    pairs = len(crosses_of(num_fields, order, key_fields))
    tensors = {"codebook": draw(num_hashes if private else 1, num_codewords, width)}
    if pair_weights != "none":
        shape = (batch, pairs) if pair_weights == "shared" else (batch, pairs, order)
        tensors["pair_weights"] = draw(*shape)
    if codeword_weights:
        tensors["codeword_weights"] = draw(batch, pairs, num_hashes * width)
    options = {
        "num_hashes": num_hashes,
        "order": order,
        "key_fields": key_fields,
        "hash": hash,
        "pool": pool,
        "first_hash": first_hash,
    }
    return Case(ids, tensors, options)


def fuzz(seed: int, dtype: torch.dtype = torch.float32) -> Case:
    """Any combination of options and odd sizes."""
    source = random.Random(seed)
    order = source.choice((2, 2, 3))
    num_fields = source.randint(order, 8)
    key_fields = None
    if order == 2 and source.random() < 0.4:
        key_fields = source.sample(range(num_fields), source.randint(1, num_fields))
    pool = source.random() < 0.8
    return make(
        source.choice((0, 1, 7, 33, 130)),
        num_fields,
        source.choice((1, 3, 50, 5000)),
        source.choice((1, 3, 4, 8, 10, 16, 16, 17, 32, 33, 48, 64, 70, 130)),
        num_hashes=source.randint(1, 4),
        order=order,
        private=source.random() < 0.4,
        pair_weights=source.choice(("none", "shared", "member") if pool else ("none", "shared")),
        codeword_weights=source.random() < 0.4,
        key_fields=key_fields,
        hash=source.choice(("mix64", "mix64", "siphash")),
        pool=pool,
        first_hash=source.randint(0, 3),
        vocabulary=source.choice((2, 9, 10**6, 2**62)),
        dtype=dtype,
        seed=seed,
    )


def plain(
    ids: Tensor,
    codebook: Tensor,
    *,
    num_hashes: int,
    order: int = 2,
    pair_weights: Tensor | None = None,
    codeword_weights: Tensor | None = None,
    key_fields: Sequence[int] | None = None,
    pool: bool = True,
    **options: Any,
) -> Tensor:
    """What one writes without this package, in the dtype of the inputs (but for the hashing)."""
    given = [t for t in (codebook, pair_weights, codeword_weights) if t is not None]
    dtype = functools.reduce(torch.promote_types, [t.dtype for t in given])
    codebook = codebook.to(dtype)
    pair_weights = None if pair_weights is None else pair_weights.to(dtype)
    codeword_weights = None if codeword_weights is None else codeword_weights.to(dtype)
    books, n, width = codebook.shape
    rows = multi_hash_indices(
        ids, n, num_hashes=num_hashes, order=order, key_fields=key_fields, **options
    )
    if books > 1:
        rows = rows + torch.arange(num_hashes) * n
    codewords = torch.nn.functional.embedding(rows, codebook.flatten(0, 1)).flatten(2)
    if codeword_weights is not None:
        codewords = codewords * codeword_weights
    if not pool:
        return codewords if pair_weights is None else codewords * pair_weights[..., None]
    crosses = torch.tensor(crosses_of(ids.shape[1], order, key_fields))
    out = codewords.new_zeros(len(ids), ids.shape[1], num_hashes * width)
    for k in range(order):
        own = codewords
        if pair_weights is not None:
            of_member = pair_weights if pair_weights.dim() == 2 else pair_weights[..., k]
            own = own * of_member[..., None]
        out = out.index_add(1, crosses[:, k], own)
    return out
