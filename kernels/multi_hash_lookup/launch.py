"""What the launches share: sizes, strides, the table of tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton
from torch import Tensor

from .. import _loops

MAX_WIDTH = 1024  # columns of a codeword: a row is held in registers

_TILE = 512  # elements of a tile: a vector of four for each of its 128 threads
_MOST_ROWS = 64
_VECTOR = 8

# What changes from batch to batch, and strides. Were they specialised, new ones would mean new
# compilations.
_SIZES = {"rows", "count", "chunks", "num_hashes", "num_codewords", "first_hash", "book_step"}
_SIZES |= {f"{operand}{dim}" for operand in "ikawg" for dim in range(3)}


def jit(function: Any) -> Any:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(function, do_not_specialize=[n for n in names if n in _SIZES])


def tile_of(width: int) -> dict[str, int]:
    """Launch configuration for codewords of ``width`` columns, on every architecture."""
    block = max(4, triton.next_power_of_2(width))
    rows = max(1, min(_MOST_ROWS, _TILE // block))
    return {"BLOCK_C": block, "ROWS": rows, "num_warps": 4}


def crosses_of(num_fields: int, order: int, key_fields: Sequence[int] | None) -> dict[str, int]:
    """The constants that say which crosses there are."""
    keys = -1 if key_fields is None else sum(1 << field for field in set(key_fields))
    num_keys = num_fields if key_fields is None else len(set(key_fields))
    return {
        "FIELDS": num_fields,
        "BITS": max(1, (num_fields - 1).bit_length()),
        "ORDER": order,
        "KEYS": keys,
        "NUM_KEYS": num_keys,
    }


def num_crosses(num_fields: int, order: int, key_fields: Sequence[int] | None) -> int:
    if key_fields is None:
        return math.comb(num_fields, order)
    return math.comb(num_fields, 2) - math.comb(num_fields - len(set(key_fields)), 2)


def wide(count: int) -> bool:
    """Whether numbers of rows need 64 bits."""
    return count >= 1 << 30


class Lookup:
    """The arguments of one lookup as its kernels take them."""

    def __init__(
        self,
        ids: Tensor,
        codebook: Tensor,
        pair_weights: Tensor | None,
        codeword_weights: Tensor | None,
        num_hashes: int,
        order: int,
        key_fields: Sequence[int] | None,
        siphash: bool,
        first_hash: int,
        pool: bool,
    ) -> None:
        if siphash:
            raise ValueError("hash: expected 'mix64' on GPUs, found 'siphash'")
        self.ids = ids
        self.codebook = _loops.unit_last_stride(codebook)
        self.pair_weights = pair_weights
        self.codeword_weights = (
            None if codeword_weights is None else _loops.unit_last_stride(codeword_weights)
        )
        self.batch, self.num_fields = ids.shape
        self.books, self.num_codewords, self.width = codebook.shape
        self.num_hashes, self.first_hash = num_hashes, first_hash
        self.order, self.key_fields, self.pool = order, key_fields, pool
        self.num_crosses = num_crosses(self.num_fields, order, key_fields)
        self.slots = self.num_fields if pool else self.num_crosses

    @property
    def columns(self) -> int:
        return self.num_hashes * self.width

    @property
    def empty(self) -> bool:
        return self.batch == 0

    @property
    def per_member(self) -> bool:
        return self.pair_weights is not None and self.pair_weights.dim() == 3

    def crosses(self) -> dict[str, int]:
        return crosses_of(self.num_fields, self.order, self.key_fields)

    def tile(self) -> dict[str, int]:
        return tile_of(self.width)

    def hashing_strides(self) -> dict[str, int]:
        return {"i0": self.ids.stride(0), "i1": self.ids.stride(1)}

    def codebook_strides(self) -> dict[str, int]:
        """``k0`` between books (0 where they are one), ``k1`` between rows."""
        book, row = _loops.leading_strides(self.codebook, 2)
        return {"k0": book, "k1": row}

    def weight_strides(self) -> dict[str, int]:
        """``a`` of the pair weights (``a2`` 0 where all fields share one), ``w`` of the others."""
        found = dict.fromkeys(("a0", "a1", "a2", "w0", "w1"), 0)
        if self.pair_weights is not None:
            strides = (*self.pair_weights.stride(), 0)[:3]
            found |= dict(zip(("a0", "a1", "a2"), strides, strict=True))
        if self.codeword_weights is not None:
            strides = _loops.leading_strides(self.codeword_weights, 2)
            found |= dict(zip(("w0", "w1"), strides, strict=True))
        return found

    def align(self, *others: tuple[Tensor, tuple[int, ...]]) -> int:
        """How many elements every row start is known to be a multiple of.

        Args:
            others: further operands with unit last stride, and strides of their rows.
        """
        strides = [self.width]
        tensors = [self.codebook, *(tensor for tensor, _ in others)]
        strides += self.codebook_strides().values()
        if self.codeword_weights is not None:
            tensors.append(self.codeword_weights)
            strides += [self.weight_strides()[name] for name in ("w0", "w1")]
        strides += [step for _, steps in others for step in steps]
        if any(tensor.data_ptr() % 16 for tensor in tensors):
            return 1
        return math.gcd(_VECTOR, *strides)
