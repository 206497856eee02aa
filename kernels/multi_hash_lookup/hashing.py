"""The hash of a cross, and the number of a cross among all; for use inside kernels.

Crosses are in lexicographic order of their fields. With key fields (a bit mask KEYS, -1 without)
there are only the pairs that hold at least one of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

GOLD = tl.constexpr(0x9E3779B97F4A7C15)
FIRST_MULTIPLIER = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND_MULTIPLIER = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def mix64(z):
    """The finalizer of SplitMix64, on uint64."""
    z = (z ^ (z >> 30)) * FIRST_MULTIPLIER
    z = (z ^ (z >> 27)) * SECOND_MULTIPLIER
    return z ^ (z >> 31)


@triton.jit
def seed_of(hash_function):
    return mix64((hash_function + 1).to(tl.uint64) * GOLD)


@triton.jit
def key_of(field, identifier):
    return mix64(identifier.to(tl.uint64) + (field + 1).to(tl.uint64) * GOLD)


@triton.jit
def codeword_of(hashed, num_codewords):
    """The upper half of the hash, scaled to [0, num_codewords): always a row that exists."""
    return (((hashed >> 32) * num_codewords.to(tl.uint64)) >> 32).to(tl.int64)


@triton.jit
def hash_of(seed, key0, key1, key2, ORDER: tl.constexpr):
    hashed = mix64(mix64(seed ^ key0) ^ key1)
    if ORDER == 3:
        hashed = mix64(hashed ^ key2)
    return hashed


# ---- key fields ----


@triton.jit
def keys_below(x, FIELDS: tl.constexpr, KEYS: tl.constexpr):
    """How many key fields are below x."""
    count = x * 0
    for k in tl.static_range(FIELDS):
        if (KEYS >> k) & 1:
            count += (x > k).to(tl.int32)
    return count


@triton.jit
def is_key(field, FIELDS: tl.constexpr, KEYS: tl.constexpr):
    found = field < 0
    for k in tl.static_range(FIELDS):
        if (KEYS >> k) & 1:
            found |= field == k
    return found


# ---- pairs and triples: number <-> fields ----


@triton.jit
def pairs_before(i, count):
    """Pairs of `count` things whose first one is below i."""
    return i * (2 * count - i - 1) // 2


@triton.jit
def triples_of(count):
    return count * (count - 1) * (count - 2) // 6


@triton.jit
def first_pair_of(i, FIELDS: tl.constexpr, KEYS: tl.constexpr, NUM_KEYS: tl.constexpr):
    """The number of the first pair whose first field is i."""
    number = pairs_before(i, FIELDS)
    if KEYS >= 0:
        # Less those of two other fields.
        number -= pairs_before(i - keys_below(i, FIELDS, KEYS), FIELDS - NUM_KEYS)
    return number


@triton.jit
def number_of_pair(i, j, FIELDS: tl.constexpr, KEYS: tl.constexpr, NUM_KEYS: tl.constexpr):
    between = j - i - 1
    if KEYS >= 0:
        keys = keys_below(j, FIELDS, KEYS) - keys_below(i, FIELDS, KEYS)
        between = tl.where(is_key(i, FIELDS, KEYS), between, keys)
    return first_pair_of(i, FIELDS, KEYS, NUM_KEYS) + between


@triton.jit
def number_of_triple(i, j, k, FIELDS: tl.constexpr):
    before = triples_of(FIELDS + i * 0) - triples_of(FIELDS - i)
    return before + pairs_before(j - i - 1, FIELDS - i - 1) + k - j - 1


@triton.jit
def fields_of(
    cross,
    FIELDS: tl.constexpr,
    BITS: tl.constexpr,  # of FIELDS - 1
    ORDER: tl.constexpr,
    KEYS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
):
    """The fields of cross number `cross`; of pairs, the third repeats the second."""
    i = cross * 0
    for b in tl.static_range(BITS):
        higher = i + (1 << (BITS - 1 - b))
        if ORDER == 3:
            before = triples_of(FIELDS + i * 0) - triples_of(FIELDS - higher)
        else:
            before = first_pair_of(higher, FIELDS, KEYS, NUM_KEYS)
        i = tl.where((higher < FIELDS) & (before <= cross), higher, i)
    if ORDER == 3:
        rest = cross - (triples_of(FIELDS + i * 0) - triples_of(FIELDS - i))
        above = FIELDS - 1 - i
        first = i * 0
        for b in tl.static_range(BITS):
            higher = first + (1 << (BITS - 1 - b))
            take = (higher < above) & (pairs_before(higher, above) <= rest)
            first = tl.where(take, higher, first)
        j = i + 1 + first
        k = j + 1 + rest - pairs_before(first, above)
    else:
        rest = cross - first_pair_of(i, FIELDS, KEYS, NUM_KEYS)
        j = i + 1 + rest
        if KEYS >= 0:
            # i is a key, and any field may follow; or the next keys follow.
            wanted = rest + keys_below(i, FIELDS, KEYS)
            key = i * 0
            for b in tl.static_range(BITS):
                higher = key + (1 << (BITS - 1 - b))
                take = (higher < FIELDS) & (keys_below(higher, FIELDS, KEYS) <= wanted)
                key = tl.where(take, higher, key)
            j = tl.where(is_key(i, FIELDS, KEYS), j, key)
        k = j
    return i, j, k


@triton.jit
def keys_of(
    ids, at, step, i, j, k, mask, ORDER: tl.constexpr
):  # `at`: where the sample's ids start, `step` apart
    """The keys of the fields of a cross."""
    key0 = key_of(i, tl.load(ids + at + i.to(tl.int64) * step, mask=mask, other=0))
    key1 = key_of(j, tl.load(ids + at + j.to(tl.int64) * step, mask=mask, other=0))
    key2 = key1
    if ORDER == 3:
        key2 = key_of(k, tl.load(ids + at + k.to(tl.int64) * step, mask=mask, other=0))
    return key0, key1, key2
