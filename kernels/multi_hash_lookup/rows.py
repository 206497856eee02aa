"""Rows of ``C`` elements between memory and float32 tiles ``[ROWS, BLOCK_C]``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, at, cols, mask):
    """The rows that start at elements `at`; 0 outside the mask.

    Callers wrap the expression `at` in tl.multiple_of, without which rows are not read in whole
    vectors; in here, on an argument, it would have no effect.
    """
    return tl.load(pointer + at[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(pointer, at, cols, value, mask):
    value = value.to(pointer.dtype.element_ty)
    tl.store(pointer + at[:, None] + cols[None, :], value, mask=mask)


@triton.jit
def load_each(pointer, at, mask):
    """One number per row in float32; 0 outside the mask."""
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)
