"""Makes Triton's interpreter right for bfloat16, so that kernels can be checked without a GPU.

NumPy has no bfloat16. The interpreter keeps such numbers as 16-bit integers; its dot multiplies
these integers, and its conversion from float32 cuts digits off where every GPU rounds to nearest
even. Nothing here runs unless TRITON_INTERPRET=1.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np


@cache
def repair() -> None:
    """Replaces the two wrong methods of the interpreter; the second call does nothing."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return TensorHandle(to_bfloat16(src.data), dst_type.scalar)
        return cast(self, src, dst_type)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _widened(a), _widened(b), *rest)

    def _widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle(from_bfloat16(operand.data), tl.float32)

    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_dot = create_dot


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 to the bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
