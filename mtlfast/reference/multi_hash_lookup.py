"""The definition of ``multi_hash_indices`` and ``multi_hash_lookup`` in plain PyTorch.

Source: MemoNet (CIKM 2023), the multi-hash codebook network HCNet: feature crosses are hashed
``num_hashes`` times into a codebook; a cross is the concatenation of its codewords, and feature
shrinking sums the crosses of every field.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..dtypes import activation_and_compute_dtype, require_floating, without_autocast
from ..errors import bad, can_read, describe, number, require_tensor, shape_text, sizes_text
from .siphash import KEYS as _SIPHASH_KEYS
from .siphash import key_strings, siphash

HASHES = ("mix64", "siphash")
MAX_CODEWORDS = 2**32 - 1

_GOLD = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def multi_hash_indices(
    ids: Tensor,
    num_codewords: int,
    *,
    num_hashes: int,
    order: int = 2,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    first_hash: int = 0,
) -> Tensor:
    """Which codewords every crossed pair of fields uses.

    Source: MemoNet (CIKM 2023), multi-hash addressing. With ``key(f, id) = mix64(id + (f+1) GOLD)``
    and ``seed(s) = mix64((s+1) GOLD)`` in 64-bit wrap-around arithmetic::

        H = seed(s)
        for every field f of the cross, in order:  H = mix64(H ^ key(f, id_f))
        index = (upper 32 bits of H) * num_codewords >> 32

    ``hash="siphash"`` is SipHash-2-4 of the text ``"<f1>_<id1>_<f2>_<id2>"`` modulo
    ``num_codewords``, with the keys of MemoNet's published code (which uses FarmHash instead where
    there is only one hash function).

    Args:
        ids: int64 ``[B, F]``, not negative. Id 0 is hashed like any other.
        num_codewords: ``n``, rows of a codebook, in ``[1, 2**32)``.
        num_hashes: hash functions ``m``; at most 11 with siphash.
        order: fields per cross, 2 or 3.
        key_fields: keep only pairs with at least one of these fields; None keeps all. Order 2 only.
        hash: ``"mix64"``, or ``"siphash"`` (CPU only).
        first_hash: number of the first hash function, for codebooks that should not collide alike.

    Returns:
        int64 ``[B, P, num_hashes]`` in ``[0, num_codewords)``; the ``P`` crosses are in
        lexicographic order of their fields.

    Raises:
        ValueError: wrong shapes, dtypes or options, or a negative id (found by a host sync on
            CUDA).
    """
    crosses = check_hashing(ids, num_hashes, order, key_fields, hash, first_hash)
    check_num_codewords("num_codewords", num_codewords)
    check_ids(ids)
    if hash == "siphash":
        return _siphash_indices(ids, crosses, num_codewords, num_hashes, first_hash)
    fields = torch.arange(ids.shape[1], device=ids.device)
    keys = mix64(ids + (fields + 1) * _signed(_GOLD))  # [B, F], every field once
    seeds = mix64(
        torch.arange(first_hash + 1, first_hash + num_hashes + 1, device=ids.device)
        * _signed(_GOLD)
    )
    hashed = seeds
    for members in zip(*crosses, strict=True):
        of_member = keys[:, torch.tensor(members, device=ids.device), None]  # [B, P, 1]
        hashed = mix64(hashed ^ of_member)
    return _shift(_shift(hashed, 32) * num_codewords, 32)


def multi_hash_lookup(
    ids: Tensor,
    codebook: Tensor,
    *,
    num_hashes: int,
    order: int = 2,
    pair_weights: Tensor | None = None,
    codeword_weights: Tensor | None = None,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    pool: bool = True,
    first_hash: int = 0,
    sparse_grad: bool = False,
) -> Tensor:
    """Codewords of every crossed pair of fields, weighted, and summed for every field.

    Source: MemoNet (CIKM 2023), memory restoring and feature shrinking without their projection,
    which is linear and may follow on the shrunk result. With ``c_p [m*c]`` the concatenated
    codewords of pair ``p``::

        v_p = pair_weights[p] * codeword_weights[p] * c_p
        out[f] = sum of v_p over the pairs p that contain field f      (pool=True)
        out[p] = v_p                                                   (pool=False)

    Differentiable any number of times (once with ``sparse_grad``). bfloat16 and float16 are
    computed in float32 and rounded once, at the end.

    Args:
        ids: int64 ``[B, F]``, not negative.
        codebook: ``[K, n, c]``; ``K`` is 1 (all hash functions share it) or ``num_hashes``.
        num_hashes, order, key_fields, hash, first_hash: as in :func:`multi_hash_indices`.
        pair_weights: ``[B, P]``, or ``[B, P, order]`` where each member field of a pair has a
            weight of its own (pool=True only); None weighs all by 1.
        codeword_weights: ``[B, P, num_hashes * c]``; None weighs all by 1.
        pool: sum over the pairs of every field.
        sparse_grad: the codebook's gradient is a coalesced COO tensor over (book, row).

    Returns:
        ``[B, F, num_hashes * c]``, or ``[B, P, num_hashes * c]`` with ``pool=False``, in the
        promoted dtype of all floating inputs; under autocast, in the autocast dtype.

    Raises:
        ValueError: wrong shapes, dtypes, devices or options, or a negative id (found by a host sync
            on CUDA).
    """
    crosses = check_lookup(
        ids,
        codebook,
        num_hashes,
        order,
        pair_weights,
        codeword_weights,
        key_fields,
        hash,
        pool,
        first_hash,
    )
    indices = multi_hash_indices(
        ids,
        codebook.shape[1],
        num_hashes=num_hashes,
        order=order,
        key_fields=key_fields,
        hash=hash,
        first_hash=first_hash,
    )
    dtype = output_dtype(codebook, pair_weights, codeword_weights)
    with without_autocast(ids.device):
        found = weighted_sum(
            indices,
            codebook,
            crosses,
            pair_weights,
            codeword_weights,
            num_fields=ids.shape[1],
            pool=pool,
            sparse_grad=sparse_grad,
        )
        return found.to(dtype)


def weighted_sum(
    indices: Tensor,
    codebook: Tensor,
    crosses: Sequence[tuple[int, ...]],
    pair_weights: Tensor | None,
    codeword_weights: Tensor | None,
    *,
    num_fields: int,
    pool: bool,
    sparse_grad: bool = False,
) -> Tensor:
    """:func:`multi_hash_lookup` with ``indices [B, P, m]`` given; float32, or float64."""
    batch, num_pairs, num_hashes = indices.shape
    books, n, width = codebook.shape
    floating = [t for t in (codebook, pair_weights, codeword_weights) if t is not None]
    double = any(tensor.dtype == torch.float64 for tensor in floating)
    compute = torch.float64 if double else torch.float32

    rows = indices
    if books > 1:
        rows = indices + torch.arange(num_hashes, device=indices.device) * n
    table = codebook.flatten(0, 1)
    if sparse_grad:
        codewords = _SparseRows.apply(rows, codebook)
    else:
        codewords = table.index_select(0, rows.flatten())
    codewords = codewords.to(compute).view(batch, num_pairs, num_hashes * width)
    if codeword_weights is not None:
        codewords = codewords * codeword_weights.to(compute)
    weights = None if pair_weights is None else pair_weights.to(compute)
    if not pool:
        return codewords if weights is None else codewords * weights[..., None]

    out = codewords.new_zeros(batch, num_fields, num_hashes * width)
    for k, members in enumerate(zip(*crosses, strict=True)):
        term = codewords
        if weights is not None:
            own = weights if weights.dim() == 2 else weights[..., k]
            term = codewords * own[..., None]
        out = out.index_add(1, torch.tensor(members, device=out.device), term)
    return out


class _SparseRows(torch.autograd.Function):
    """Rows of a codebook; their gradient holds every row once, as COO over (book, row)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codebook: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = codebook.shape
        return codebook.flatten(0, 1).index_select(0, rows.flatten())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (rows,) = ctx.saved_tensors
        unique, inverse = rows.flatten().unique(return_inverse=True)
        compute = torch.float64 if grad.dtype == torch.float64 else torch.float32
        values = grad.new_zeros(len(unique), ctx.shape[2], dtype=compute)
        values = values.index_add(0, inverse, grad.to(compute)).to(grad.dtype)
        where = torch.stack((unique // ctx.shape[1], unique % ctx.shape[1]))
        return None, sparse_rows(where, values, ctx.shape)


def sparse_rows(indices: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """A coalesced COO tensor of ``shape [K, n, c]``; ``indices [2, nnz]`` are unique and ascend."""
    return torch.sparse_coo_tensor(
        indices, values, tuple(shape), check_invariants=False, is_coalesced=True
    )


# ---- hashing ----


def mix64(z: Tensor) -> Tensor:
    """The finalizer of SplitMix64 on the bits of an int64 tensor."""
    z = (z ^ _shift(z, 30)) * _signed(_MULTIPLIERS[0])
    z = (z ^ _shift(z, 27)) * _signed(_MULTIPLIERS[1])
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _siphash_indices(
    ids: Tensor,
    crosses: Sequence[tuple[int, ...]],
    num_codewords: int,
    num_hashes: int,
    first_hash: int,
) -> Tensor:
    messages = key_strings(ids, crosses)
    indices = []
    for key in _SIPHASH_KEYS[first_hash : first_hash + num_hashes]:
        bits = siphash(messages, key)
        # The remainder of a uint64, from its two halves: 2**32 * high + low.
        high, low = _shift(bits, 32) % num_codewords, bits & 0xFFFFFFFF
        for _ in range(2):  # 16 bits at a time stay below 2**63
            high = (high << 16) % num_codewords
        indices.append((high + low) % num_codewords)
    return torch.stack(indices, -1).view(ids.shape[0], len(crosses), num_hashes)


# ---- checks ----


@functools.lru_cache(maxsize=64)
def _cached_crosses(
    num_fields: int, order: int, key_fields: tuple[int, ...] | None
) -> tuple[tuple[int, ...], ...]:
    found = itertools.combinations(range(num_fields), order)
    if key_fields is None:
        return tuple(found)
    return tuple(cross for cross in found if any(field in key_fields for field in cross))


def _crosses(
    num_fields: int, order: int, key_fields: tuple[int, ...] | None
) -> tuple[tuple[int, ...], ...]:
    return _cached_crosses(num_fields, order, key_fields)


# What torch.compiler.assume_constant_result sets; that decorator imports all of Dynamo.
_crosses._dynamo_marked_constant = True  # type: ignore[attr-defined]


def field_crosses(
    num_fields: int, order: int = 2, key_fields: Sequence[int] | None = None
) -> tuple[tuple[int, ...], ...]:
    """The crossed fields: all combinations in lexicographic order, or those with a key field.

    Raises:
        ValueError: an order other than 2 and 3, fewer fields than that, or wrong key fields.
    """
    if not isinstance(order, int) or order not in (2, 3):
        raise bad("order", "2 or 3", repr(order))
    # In a traced graph both may be symbols; crosses are those of this call.
    num_fields, order = int(number(num_fields)), int(number(order))
    if num_fields < order:
        raise bad("ids", f"at least {order} fields", num_fields)
    if key_fields is None:
        return _crosses(num_fields, order, None)
    if order != 2:
        raise bad("key_fields", "None unless order is 2", list(key_fields))
    chosen = tuple(key_fields)
    valid = all(isinstance(f, int) and 0 <= f < num_fields for f in chosen)
    if not chosen or not valid or len(set(chosen)) != len(chosen):
        raise bad("key_fields", f"distinct fields in [0, {num_fields}), at least one", list(chosen))
    return _crosses(num_fields, order, tuple(sorted(chosen)))


def check_hashing(
    ids: Tensor,
    num_hashes: int,
    order: int,
    key_fields: Sequence[int] | None,
    hash: str,
    first_hash: int,
) -> tuple[tuple[int, ...], ...]:
    """Raises ValueError where an argument is wrong; reads no data. Returns the crosses."""
    require_tensor("ids", ids)
    if ids.dtype != torch.int64:
        raise bad("ids", "dtype int64", describe(ids))
    if ids.dim() != 2:
        raise bad("ids", "shape [B, F]", f"shape {shape_text(ids)}")
    check_hash_functions(num_hashes, hash, first_hash)
    if hash == "siphash" and ids.device.type not in ("cpu", "meta"):
        raise bad("hash", "'mix64' unless ids are on the CPU", f"'siphash' on {ids.device}")
    return field_crosses(ids.shape[1], order, key_fields)


def check_hash_functions(num_hashes: int, hash: str, first_hash: int) -> None:
    """Raises ValueError where there are no such hash functions."""
    if hash not in HASHES:
        raise bad("hash", f"one of {HASHES}", repr(hash))
    for name, value, least in (("num_hashes", num_hashes, 1), ("first_hash", first_hash, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise bad(name, f"an int of at least {least}", repr(value))
    if hash == "siphash" and first_hash + num_hashes > len(_SIPHASH_KEYS):
        expected = f"at most {len(_SIPHASH_KEYS)} hash functions with siphash"
        raise bad("num_hashes", expected, first_hash + num_hashes)


def check_lookup(
    ids: Tensor,
    codebook: Tensor,
    num_hashes: int,
    order: int,
    pair_weights: Tensor | None,
    codeword_weights: Tensor | None,
    key_fields: Sequence[int] | None,
    hash: str,
    pool: bool,
    first_hash: int,
) -> tuple[tuple[int, ...], ...]:
    """Raises ValueError where an argument is wrong; reads no data. Returns the crosses."""
    crosses = check_hashing(ids, num_hashes, order, key_fields, hash, first_hash)
    _require("codebook", codebook, ids)
    if codebook.dim() != 3 or codebook.shape[0] not in (1, num_hashes) or codebook.shape[2] < 1:
        books = "1" if num_hashes == 1 else f"1 or {num_hashes}"
        raise bad("codebook", f"shape [K = {books}, n, c]", f"shape {shape_text(codebook)}")
    check_num_codewords("codebook", codebook.shape[1])
    pairs, batch = len(crosses), ids.shape[0]
    if pair_weights is not None:
        _require("pair_weights", pair_weights, ids)
        shapes = [(batch, pairs), (batch, pairs, order)] if pool else [(batch, pairs)]
        if not any(_has_shape(pair_weights, shape) for shape in shapes):
            expected = " or ".join(sizes_text(shape) for shape in shapes)
            raise bad("pair_weights", f"shape {expected}", f"shape {shape_text(pair_weights)}")
    if codeword_weights is not None:
        _require("codeword_weights", codeword_weights, ids)
        shape = (batch, pairs, num_hashes * codebook.shape[2])
        if not _has_shape(codeword_weights, shape):
            raise bad(
                "codeword_weights",
                f"shape {sizes_text(shape)}",
                f"shape {shape_text(codeword_weights)}",
            )
    return crosses


def check_ids(ids: Tensor) -> None:
    """Raises ValueError where an id is negative; a host sync on CUDA."""
    if not (can_read(ids) or (ids.device.type == "cuda" and not torch.compiler.is_compiling())):
        return
    if ids.numel() and int(ids.min()) < 0:
        row, field = (ids < 0).nonzero()[0].tolist()
        raise bad("ids", "no negative id", f"ids[{row}, {field}] = {int(ids[row, field])}")


def output_dtype(
    codebook: Tensor, pair_weights: Tensor | None, codeword_weights: Tensor | None
) -> torch.dtype:
    """The promoted dtype of the floating inputs, or the autocast dtype."""
    tensors = [t for t in (codebook, pair_weights, codeword_weights) if t is not None]
    return activation_and_compute_dtype(tensors, (), codebook.device)[0]


def check_num_codewords(name: str, value: int) -> None:
    """Raises ValueError where ``value``, the argument ``name`` or its size, is out of range."""
    if name == "num_codewords" and (not isinstance(value, int) or isinstance(value, bool)):
        raise bad(name, "an int", type(value).__name__)
    if not 1 <= value <= MAX_CODEWORDS:
        raise bad(name, "from 1 to 2**32 - 1 codewords", value)


def _require(name: str, tensor: Tensor, ids: Tensor) -> None:
    require_tensor(name, tensor)
    require_floating(name, tensor)
    if tensor.device != ids.device:
        raise bad(name, f"device {ids.device} (that of ids)", tensor.device)


def _has_shape(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tensor.dim() == len(shape) and all(
        have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
