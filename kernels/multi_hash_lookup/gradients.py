"""The gradients of the weights and of the codebook."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .. import _loops
from .._device import on_device
from .codebook import dense_gradient, sparse_gradient
from .hashing import codeword_of, fields_of, hash_of, keys_of, seed_of
from .launch import Lookup, jit, wide
from .rows import load_each, load_rows, store_rows


@jit
def weight_gradients(
    ids,
    codebook,
    pair_weights,  # or None
    codeword_weights,  # or None
    grad,  # [B, F or P, m * c]
    grad_pair,  # [B, P] or [B, P, order], contiguous; or None
    grad_codeword,  # [B, P, m * c], contiguous; or None
    rows,  # (sample, cross)
    num_hashes,
    num_codewords,
    first_hash,
    i0,
    i1,
    k0,
    k1,
    a0,
    a1,
    a2,
    w0,
    w1,
    g0,
    g1,
    FIELDS: tl.constexpr,
    BITS: tl.constexpr,
    ORDER: tl.constexpr,
    KEYS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    CROSSES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    POOL: tl.constexpr,
    PER_MEMBER: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of the pair weights: codeword times upstream, summed; of the codewords', not summed."""
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    row = start * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_C)
    inside = row < rows
    mask = inside[:, None] & (cols < C)[None, :]
    sample = row // CROSSES
    cross = (row - sample * CROSSES).to(tl.int32)
    sample = sample.to(tl.int64)
    i, j, k = fields_of(cross, FIELDS, BITS, ORDER, KEYS, NUM_KEYS)
    key0, key1, key2 = keys_of(ids, sample * i0, i1, i, j, k, inside, ORDER)
    cross = cross.to(tl.int64)
    up0 = sample * g0 + cross * g1
    up1 = up0
    up2 = up0
    if POOL:
        up0 = sample * g0 + i.to(tl.int64) * g1
        up1 = sample * g0 + j.to(tl.int64) * g1
        up2 = sample * g0 + k.to(tl.int64) * g1
    weight0 = tl.full([ROWS], 1.0, tl.float32)
    weight1 = weight0
    weight2 = weight0
    if pair_weights is not None and grad_codeword is not None:
        start = sample * a0 + cross * a1
        weight0 = load_each(pair_weights, start, inside)
        weight1 = weight0
        weight2 = weight0
        if PER_MEMBER:
            weight1 = load_each(pair_weights, start + a2, inside)
            if ORDER == 3:
                weight2 = load_each(pair_weights, start + 2 * a2, inside)
    sum0 = tl.zeros([ROWS, BLOCK_C], tl.float32)
    sum1 = sum0
    sum2 = sum0
    zero = tl.full([], 0, tl.int32)
    for s in range(num_hashes):
        column = (zero + s).to(tl.int64) * C
        hashed = hash_of(seed_of(first_hash + zero + s), key0, key1, key2, ORDER)
        at = tl.multiple_of(
            (zero + s).to(tl.int64) * k0 + codeword_of(hashed, num_codewords) * k1, ALIGN
        )
        value = load_rows(codebook, at, cols, mask)
        weighted = value
        if codeword_weights is not None:
            at = tl.multiple_of(sample * w0 + cross * w1 + column, ALIGN)
            weighted = value * load_rows(codeword_weights, at, cols, mask)
        upstream = load_rows(grad, tl.multiple_of(up0 + column, ALIGN), cols, mask)
        sum0 += weighted * upstream
        of_codeword = weight0[:, None] * upstream
        if POOL:
            upstream = load_rows(grad, tl.multiple_of(up1 + column, ALIGN), cols, mask)
            sum1 += weighted * upstream
            of_codeword += weight1[:, None] * upstream
            if ORDER == 3:
                upstream = load_rows(grad, tl.multiple_of(up2 + column, ALIGN), cols, mask)
                sum2 += weighted * upstream
                of_codeword += weight2[:, None] * upstream
        if grad_codeword is not None:
            at = tl.multiple_of((row.to(tl.int64) * num_hashes + s) * C, ALIGN)
            store_rows(grad_codeword, at, cols, of_codeword * value, mask)
    if grad_pair is not None:
        kind = grad_pair.dtype.element_ty
        if PER_MEMBER:
            target = grad_pair + row.to(tl.int64) * ORDER
            tl.store(target, tl.sum(sum0, 1).to(kind), mask=inside)
            tl.store(target + 1, tl.sum(sum1, 1).to(kind), mask=inside)
            if ORDER == 3:
                tl.store(target + 2, tl.sum(sum2, 1).to(kind), mask=inside)
        else:
            total = tl.sum(sum0 + sum1 + sum2, 1)
            tl.store(grad_pair + row.to(tl.int64), total.to(kind), mask=inside)


# ---- launches ----


def backward(
    grad_out: Tensor, ids: Tensor, codebook: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *arguments, need_codebook, need_pair, need_codeword = rest
    lookup = Lookup(ids, codebook, *arguments)
    grad = _loops.unit_last_stride(grad_out)
    weights = _weight_gradients(lookup, grad, arguments[:2], (need_pair, need_codeword))
    if not need_codebook:
        return codebook.new_empty((0,)), *weights
    return dense_gradient(lookup, grad), *weights


def backward_sparse(
    grad_out: Tensor, ids: Tensor, codebook: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *arguments, need_pair, need_codeword = rest
    lookup = Lookup(ids, codebook, *arguments)
    grad = _loops.unit_last_stride(grad_out)
    weights = _weight_gradients(lookup, grad, arguments[:2], (need_pair, need_codeword))
    return *sparse_gradient(lookup, grad), *weights


def _weight_gradients(
    lookup: Lookup, grad: Tensor, weights: Any, needed: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """In the dtypes of the weights; size 0 where not needed."""
    wanted = [tensor is not None and need for tensor, need in zip(weights, needed, strict=True)]
    found = [
        (grad if tensor is None else tensor).new_empty(tensor.shape if want else (0,))
        for tensor, want in zip(weights, wanted, strict=True)
    ]
    if lookup.empty or not any(wanted):
        return found[0], found[1]
    rows = lookup.batch * lookup.num_crosses
    tile = lookup.tile()
    strides = _loops.leading_strides(grad, 2)
    with on_device(lookup.ids):
        weight_gradients[(triton.cdiv(rows, tile["ROWS"]),)](
            lookup.ids,
            lookup.codebook,
            lookup.pair_weights,
            lookup.codeword_weights,
            grad,
            found[0] if wanted[0] else None,
            found[1] if wanted[1] else None,
            rows,
            lookup.num_hashes,
            lookup.num_codewords,
            lookup.first_hash,
            g0=strides[0],
            g1=strides[1],
            CROSSES=lookup.num_crosses,
            C=lookup.width,
            POOL=lookup.pool,
            PER_MEMBER=lookup.per_member,
            ALIGN=lookup.align((grad, strides)),
            WIDE=wide(rows),
            **lookup.hashing_strides(),
            **lookup.codebook_strides(),
            **lookup.weight_strides(),
            **lookup.crosses(),
            **tile,
        )
    return found[0], found[1]
