"""The gradient of the codebook: entries sorted by row, and the sums of their runs.

One entry per codeword used. A chunk of the sorted entries is walked by one row of a tile. A run
that begins and ends inside a chunk is complete: its sum is the gradient of its row. The first and
the last run of a chunk may go on in its neighbours; their sums are the entries of the next level,
sorted like the first ones and 16 times fewer. One chunk is left at last. A hot row, of however many
entries, thus costs a few levels, and the order of all sums depends on the data alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _loops
from .._device import on_device
from .hashing import fields_of
from .launch import Lookup, jit, wide
from .lookup import rows_of_codebook
from .rows import load_each, load_rows, store_rows

CHUNK = 32  # entries, an even number


@triton.jit
def _entry(
    keys,
    order,  # the entry at each place of the sorted list; None on later levels
    sums,  # [count, C], later levels
    grad,
    pair_weights,
    codeword_weights,
    place,  # [ROWS]
    live,
    cols,
    count,
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
    HASHES: tl.constexpr,
    C: tl.constexpr,
    POOL: tl.constexpr,
    PER_MEMBER: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Row number (-1: nothing here) and gradient of an entry."""
    inside = live & (place < count)
    key = tl.load(keys + place, mask=inside, other=-1)
    inside &= key >= 0
    mask = inside[:, None] & (cols < C)[None, :]
    if sums is not None:
        value = load_rows(sums, tl.multiple_of(place.to(tl.int64) * C, ALIGN), cols, mask)
    else:
        entry = tl.load(order + place, mask=inside, other=0)
        if not WIDE:
            entry = entry.to(tl.int32)
        row = entry // HASHES
        column = (entry - row * HASHES).to(tl.int64) * C
        sample = row // CROSSES
        cross = (row - sample * CROSSES).to(tl.int32)
        sample = sample.to(tl.int64)
        upstream = sample * g0 + column
        number = cross.to(tl.int64)
        weight = sample * a0 + number * a1
        if POOL:
            i, j, k = fields_of(cross, FIELDS, BITS, ORDER, KEYS, NUM_KEYS)
            value = load_rows(
                grad, tl.multiple_of(upstream + i.to(tl.int64) * g1, ALIGN), cols, mask
            )
            more = load_rows(
                grad, tl.multiple_of(upstream + j.to(tl.int64) * g1, ALIGN), cols, mask
            )
            if PER_MEMBER:
                value *= load_each(pair_weights, weight, inside)[:, None]
                more *= load_each(pair_weights, weight + a2, inside)[:, None]
            value += more
            if ORDER == 3:
                more = load_rows(
                    grad, tl.multiple_of(upstream + k.to(tl.int64) * g1, ALIGN), cols, mask
                )
                if PER_MEMBER:
                    more *= load_each(pair_weights, weight + 2 * a2, inside)[:, None]
                value += more
        else:
            value = load_rows(grad, tl.multiple_of(upstream + number * g1, ALIGN), cols, mask)
        if pair_weights is not None and not PER_MEMBER:
            value *= load_each(pair_weights, weight, inside)[:, None]
        if codeword_weights is not None:
            at = tl.multiple_of(sample * w0 + number * w1 + column, ALIGN)
            value *= load_rows(codeword_weights, at, cols, mask)
    return key, value


@triton.jit
def _store(pointer, row, cols, value, inside, C: tl.constexpr, ALIGN: tl.constexpr):
    mask = inside[:, None] & (cols < C)[None, :]
    store_rows(pointer, tl.multiple_of(row.to(tl.int64) * C, ALIGN), cols, value, mask)


@triton.jit
def _absorb(
    out, key, value, head_key, head, current, total, cols, C: tl.constexpr, ALIGN: tl.constexpr
):
    """Adds an entry to its run; writes the run that it ends, unless that is the first."""
    begins = (key >= 0) & (key != current)
    ends = begins & (current >= 0)
    _store(out, current, cols, total, ends & (head_key >= 0), C, ALIGN)
    is_head = ends & (head_key < 0)
    head = tl.where(is_head[:, None], total, head)
    head_key = tl.where(is_head, current, head_key)
    total = tl.where(begins[:, None], value, total + value)
    current = tl.where(begins, key, current)
    return head_key, head, current, total


@jit
def reduce(
    keys,  # [count]: rows of `out`, ascending; -1 where there is nothing
    order,  # [count], the entries; None on later levels
    sums,  # [count, C], later levels
    grad,
    pair_weights,
    codeword_weights,
    out,  # [rows, C], contiguous
    next_keys,  # [2 * chunks]
    next_sums,  # [2 * chunks, C]
    count,
    chunks,
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
    HASHES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    POOL: tl.constexpr,
    PER_MEMBER: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One level: a chunk per row of the tile."""
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    chunk = start * ROWS + tl.arange(0, ROWS)
    live = chunk < chunks
    cols = tl.arange(0, BLOCK_C)
    kind = keys.dtype.element_ty
    head_key = tl.full([ROWS], -1, kind)
    head = tl.zeros([ROWS, BLOCK_C], tl.float32)
    current = head_key
    total = head
    for step in range(0, tl.minimum(CHUNK, count), 2):
        place = chunk * CHUNK + step
        # Both are on their way before anything is written.
        key0, value0 = _entry(
            keys,
            order,
            sums,
            grad,
            pair_weights,
            codeword_weights,
            place,
            live,
            cols,
            count,
            a0,
            a1,
            a2,
            w0,
            w1,
            g0,
            g1,
            FIELDS,
            BITS,
            ORDER,
            KEYS,
            NUM_KEYS,
            CROSSES,
            HASHES,
            C,
            POOL,
            PER_MEMBER,
            ALIGN,
            WIDE,
        )
        key1, value1 = _entry(
            keys,
            order,
            sums,
            grad,
            pair_weights,
            codeword_weights,
            place + 1,
            live,
            cols,
            count,
            a0,
            a1,
            a2,
            w0,
            w1,
            g0,
            g1,
            FIELDS,
            BITS,
            ORDER,
            KEYS,
            NUM_KEYS,
            CROSSES,
            HASHES,
            C,
            POOL,
            PER_MEMBER,
            ALIGN,
            WIDE,
        )
        head_key, head, current, total = _absorb(
            out, key0, value0, head_key, head, current, total, cols, C, ALIGN
        )
        head_key, head, current, total = _absorb(
            out, key1, value1, head_key, head, current, total, cols, C, ALIGN
        )
    if chunks == 1:
        _store(out, head_key, cols, head, live & (head_key >= 0), C, ALIGN)
        _store(out, current, cols, total, live & (current >= 0), C, ALIGN)
    else:
        tl.store(next_keys + 2 * chunk, head_key, mask=live)
        tl.store(next_keys + 2 * chunk + 1, current, mask=live)
        _store(next_sums, 2 * chunk, cols, head, live, C, ALIGN)
        _store(next_sums, 2 * chunk + 1, cols, total, live, C, ALIGN)


# ---- launches ----


def dense_gradient(lookup: Lookup, grad: Tensor) -> Tensor:
    """``[K, n, c]``, rows that are not in use 0."""
    shape = (lookup.books, lookup.num_codewords, lookup.width)
    out = lookup.codebook.new_zeros(shape)
    if not lookup.empty:
        _reduce_entries(lookup, grad, *_sorted_rows(lookup), out)
    return out


def sparse_gradient(lookup: Lookup, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(book, row) ``[2, nnz]`` and values ``[nnz, c]``; waits for the device to know ``nnz``."""
    if lookup.empty:
        return lookup.ids.new_empty((2, 0)), lookup.codebook.new_empty((0, lookup.width))
    keys, order = _sorted_rows(lookup)
    rows, position = torch.unique_consecutive(keys, return_inverse=True)
    values = lookup.codebook.new_empty((rows.shape[0], lookup.width))
    _reduce_entries(lookup, grad, position, order, values)
    rows = rows.to(torch.int64)
    n = lookup.num_codewords
    return torch.stack((rows // n, rows % n)), values


def _sorted_rows(lookup: Lookup) -> tuple[Tensor, Tensor]:
    """The rows of all entries, ascending, and the entries; those of one row stay in their order."""
    total = lookup.books * lookup.num_codewords
    rows = rows_of_codebook(
        lookup.ids,
        lookup.num_codewords,
        lookup.num_hashes,
        lookup.order,
        lookup.key_fields,
        lookup.first_hash,
        lookup.num_codewords if lookup.books > 1 else 0,
        torch.int32 if total < 1 << 31 else torch.int64,
    )
    keys, order = torch.sort(rows.flatten(), stable=True)
    return keys, order


def _reduce_entries(lookup: Lookup, grad: Tensor, keys: Tensor, order: Tensor, out: Tensor) -> None:
    tile = lookup.tile()
    count = keys.shape[0]
    strides = _loops.leading_strides(grad, 2)
    level: tuple[Tensor | None, ...] = (order, None)
    with on_device(lookup.ids):
        while True:
            chunks = triton.cdiv(count, CHUNK)
            many = 2 * chunks if chunks > 1 else 0
            next_keys = keys.new_empty((many,))
            next_sums = grad.new_empty((many, lookup.width), dtype=torch.float32)
            reduce[(triton.cdiv(chunks, tile["ROWS"]),)](
                keys,
                *level,
                grad,
                lookup.pair_weights,
                lookup.codeword_weights,
                out,
                next_keys,
                next_sums,
                count,
                chunks,
                g0=strides[0],
                g1=strides[1],
                CROSSES=lookup.num_crosses,
                HASHES=lookup.num_hashes,
                C=lookup.width,
                CHUNK=CHUNK,
                POOL=lookup.pool,
                PER_MEMBER=lookup.per_member,
                ALIGN=lookup.align((grad, strides)),
                WIDE=wide(count),
                **lookup.weight_strides(),
                **lookup.crosses(),
                **tile,
            )
            if chunks == 1:
                return
            keys, level, count = next_keys, (None, next_sums), many
