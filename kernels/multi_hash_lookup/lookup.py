"""The indices, and the forward: hashed, looked up, weighted and summed in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._device import on_device
from .hashing import (
    codeword_of,
    fields_of,
    hash_of,
    is_key,
    key_of,
    keys_of,
    number_of_pair,
    number_of_triple,
    seed_of,
)
from .launch import Lookup, crosses_of, jit, num_crosses, wide
from .rows import load_each, load_rows, store_rows

INDEX_ROWS = 128
UNROLL = 4  # crosses of a row that are fetched at a time


@jit
def find_rows(
    ids,
    out,  # [rows, m]
    rows,  # (sample, cross)
    num_hashes,
    num_codewords,
    first_hash,
    book_step,  # added for every hash function: codewords of a book of its own, or 0
    i0,
    i1,
    FIELDS: tl.constexpr,
    BITS: tl.constexpr,
    ORDER: tl.constexpr,
    KEYS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    CROSSES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The codewords of every cross."""
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    row = start * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    sample = row // CROSSES
    cross = (row - sample * CROSSES).to(tl.int32)
    i, j, k = fields_of(cross, FIELDS, BITS, ORDER, KEYS, NUM_KEYS)
    at = sample.to(tl.int64) * i0
    key0, key1, key2 = keys_of(ids, at, i1, i, j, k, inside, ORDER)
    zero = tl.full([], 0, tl.int32)
    target = out + row.to(tl.int64) * num_hashes
    for s in range(num_hashes):
        seed = seed_of(first_hash + zero + s)
        index = codeword_of(hash_of(seed, key0, key1, key2, ORDER), num_codewords)
        index += (zero + s).to(tl.int64) * book_step
        tl.store(target + s, index.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _term(
    ids,
    codebook,
    pair_weights,
    codeword_weights,
    sample,  # [ROWS], as what follows
    field,
    own,  # its key
    inside,
    g,  # the other field of the cross, the same for all rows
    h,  # the third
    seed,
    num_codewords,
    first_column,  # of this hash function
    cols,
    book,
    i0,
    i1,
    k1,
    a0,
    a1,
    a2,
    w0,
    w1,
    FIELDS: tl.constexpr,
    ORDER: tl.constexpr,
    KEYS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    C: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """The weighted codeword of one cross of every row; 0 where that is no cross. [ROWS, BLOCK_C]"""
    active = inside & (field != g) & (g < FIELDS)
    id_row = ids + sample * i0
    other = key_of(g, tl.load(id_row + g.to(tl.int64) * i1, mask=active, other=0))
    if ORDER == 3:
        active &= (field != h) & (h < FIELDS)
        third = key_of(h, tl.load(id_row + h.to(tl.int64) * i1, mask=active, other=0))
        i = tl.minimum(field, g)
        k = tl.maximum(field, h)
        j = field + g + h - i - k
        key0 = tl.where(field < g, own, other)
        key2 = tl.where(field > h, own, third)
        key1 = own ^ other ^ third ^ key0 ^ key2
        cross = number_of_triple(i, j, k, FIELDS)
        place = (field > g).to(tl.int32) + (field > h).to(tl.int32)
    else:
        i = tl.minimum(field, g)
        j = tl.maximum(field, g)
        key0 = tl.where(field < g, own, other)
        key1 = own ^ other ^ key0
        key2 = key1
        if KEYS >= 0:
            active &= is_key(field, FIELDS, KEYS) | is_key(g, FIELDS, KEYS)
        cross = number_of_pair(i, j, FIELDS, KEYS, NUM_KEYS)
        place = (field > g).to(tl.int32)
    index = codeword_of(hash_of(seed, key0, key1, key2, ORDER), num_codewords)
    mask = active[:, None] & (cols < C)[None, :]
    value = load_rows(codebook, tl.multiple_of(book + index * k1, ALIGN), cols, mask)
    cross = cross.to(tl.int64)
    if codeword_weights is not None:
        at = tl.multiple_of(sample * w0 + cross * w1 + first_column, ALIGN)
        value *= load_rows(codeword_weights, at, cols, mask)
    if pair_weights is not None:
        at = sample * a0 + cross * a1 + place * a2
        value *= load_each(pair_weights, at, active)[:, None]
    return value


@jit
def pooled(
    ids,
    codebook,
    pair_weights,  # or None
    codeword_weights,  # or None
    out,  # [B, F, m * c], contiguous
    rows,  # (sample, field)
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
    FIELDS: tl.constexpr,
    ORDER: tl.constexpr,
    KEYS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """For every field, the sum over the crosses with it; the second axis is the hash function."""
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    row = start * ROWS + tl.arange(0, ROWS)
    s = tl.program_id(1)
    cols = tl.arange(0, BLOCK_C)
    inside = row < rows
    sample = row // FIELDS
    field = (row - sample * FIELDS).to(tl.int32)
    sample = sample.to(tl.int64)
    first_column = s.to(tl.int64) * C
    book = s.to(tl.int64) * k0
    seed = seed_of(first_hash + s)
    own = tl.load(ids + sample * i0 + field.to(tl.int64) * i1, mask=inside, other=0)
    own = key_of(field, own)
    zero = tl.full([], 0, tl.int32)
    total = tl.zeros([ROWS, BLOCK_C], tl.float32)
    if ORDER == 3:
        for g in range(FIELDS - 1):
            for h in range(g + 1, FIELDS, UNROLL):
                for u in tl.static_range(UNROLL):
                    total += _term(
                        ids,
                        codebook,
                        pair_weights,
                        codeword_weights,
                        sample,
                        field,
                        own,
                        inside,
                        zero + g,
                        zero + h + u,
                        seed,
                        num_codewords,
                        first_column,
                        cols,
                        book,
                        i0,
                        i1,
                        k1,
                        a0,
                        a1,
                        a2,
                        w0,
                        w1,
                        FIELDS,
                        ORDER,
                        KEYS,
                        NUM_KEYS,
                        C,
                        ALIGN,
                    )
    else:
        for g in range(0, FIELDS, UNROLL):
            for u in tl.static_range(UNROLL):
                total += _term(
                    ids,
                    codebook,
                    pair_weights,
                    codeword_weights,
                    sample,
                    field,
                    own,
                    inside,
                    zero + g + u,
                    zero,
                    seed,
                    num_codewords,
                    first_column,
                    cols,
                    book,
                    i0,
                    i1,
                    k1,
                    a0,
                    a1,
                    a2,
                    w0,
                    w1,
                    FIELDS,
                    ORDER,
                    KEYS,
                    NUM_KEYS,
                    C,
                    ALIGN,
                )
    mask = inside[:, None] & (cols < C)[None, :]
    store_rows(
        out, tl.multiple_of((row.to(tl.int64) * num_hashes + s) * C, ALIGN), cols, total, mask
    )


@jit
def crosses(
    ids,
    codebook,
    pair_weights,  # or None
    codeword_weights,  # or None
    out,  # [B, P, m * c], contiguous
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
    w0,
    w1,
    FIELDS: tl.constexpr,
    BITS: tl.constexpr,
    ORDER: tl.constexpr,
    KEYS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    CROSSES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The weighted codeword of every cross; the second axis is the hash function."""
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    row = start * ROWS + tl.arange(0, ROWS)
    s = tl.program_id(1)
    cols = tl.arange(0, BLOCK_C)
    inside = row < rows
    sample = row // CROSSES
    cross = (row - sample * CROSSES).to(tl.int32)
    sample = sample.to(tl.int64)
    i, j, k = fields_of(cross, FIELDS, BITS, ORDER, KEYS, NUM_KEYS)
    key0, key1, key2 = keys_of(ids, sample * i0, i1, i, j, k, inside, ORDER)
    hashed = hash_of(seed_of(first_hash + s), key0, key1, key2, ORDER)
    mask = inside[:, None] & (cols < C)[None, :]
    at = tl.multiple_of(s.to(tl.int64) * k0 + codeword_of(hashed, num_codewords) * k1, ALIGN)
    value = load_rows(codebook, at, cols, mask)
    cross = cross.to(tl.int64)
    if codeword_weights is not None:
        at = tl.multiple_of(sample * w0 + cross * w1 + s.to(tl.int64) * C, ALIGN)
        value *= load_rows(codeword_weights, at, cols, mask)
    if pair_weights is not None:
        value *= load_each(pair_weights, sample * a0 + cross * a1, inside)[:, None]
    store_rows(
        out, tl.multiple_of((row.to(tl.int64) * num_hashes + s) * C, ALIGN), cols, value, mask
    )


# ---- launches ----


def rows_of_codebook(
    ids: Tensor,
    num_codewords: int,
    num_hashes: int,
    order: int,
    key_fields: Sequence[int] | None,
    first_hash: int,
    book_step: int,
    dtype: torch.dtype,
) -> Tensor:
    """``[B, P, m]``: the codeword of every cross, plus ``book_step`` per hash function."""
    batch, num_fields = ids.shape
    count = num_crosses(num_fields, order, key_fields)
    out = ids.new_empty((batch, count, num_hashes), dtype=dtype)
    rows = batch * count
    if rows == 0:
        return out
    with on_device(ids):
        find_rows[(triton.cdiv(rows, INDEX_ROWS),)](
            ids,
            out,
            rows,
            num_hashes,
            num_codewords,
            first_hash,
            book_step,
            i0=ids.stride(0),
            i1=ids.stride(1),
            CROSSES=count,
            ROWS=INDEX_ROWS,
            WIDE=wide(rows),
            **crosses_of(num_fields, order, key_fields),
        )
    return out


def indices(
    ids: Tensor,
    num_codewords: int,
    num_hashes: int,
    order: int,
    key_fields: Sequence[int] | None,
    siphash: bool,
    first_hash: int,
) -> Tensor:
    if siphash:
        raise ValueError("hash: expected 'mix64' on GPUs, found 'siphash'")
    return rows_of_codebook(
        ids, num_codewords, num_hashes, order, key_fields, first_hash, 0, torch.int64
    )


def forward(ids: Tensor, codebook: Tensor, *rest: Any) -> Tensor:
    lookup = Lookup(ids, codebook, *rest)
    out = codebook.new_empty((lookup.batch, lookup.slots, lookup.columns), dtype=torch.float32)
    if lookup.empty:
        return out
    rows = lookup.batch * lookup.slots
    tile = lookup.tile()
    arguments: dict[str, Any] = {
        **lookup.hashing_strides(),
        **lookup.codebook_strides(),
        **lookup.weight_strides(),
        **lookup.crosses(),
        "C": lookup.width,
        "ALIGN": lookup.align(),
        "WIDE": wide(rows),
        **tile,
    }
    if lookup.pool:
        kernel: Any = pooled
        arguments["UNROLL"] = UNROLL
        del arguments["BITS"]
    else:
        kernel = crosses
        arguments["CROSSES"] = lookup.num_crosses
        del arguments["a2"]
    with on_device(ids):
        kernel[(triton.cdiv(rows, tile["ROWS"]), lookup.num_hashes)](
            ids,
            lookup.codebook,
            lookup.pair_weights,
            lookup.codeword_weights,
            out,
            rows,
            lookup.num_hashes,
            lookup.num_codewords,
            first_hash=lookup.first_hash,
            **arguments,
        )
    return out
