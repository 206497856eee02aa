"""Padded sizes, and where each weight lies in the packed buffers. Knows nothing of triton.

Tiles have power-of-two sides, so every width is padded with zeros: d to ``DP``, the heads to
``HP`` of ``DHP`` columns each, d_f to ``FP``. The zeros make masks unnecessary inside the kernels.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_D, MAX_D_F, MAX_HEAD_COLUMNS = 128, 1024, 256


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


class Layout(NamedTuple):
    """Sizes of one problem; ``constants()`` is what every kernel gets."""

    d: int
    d_f: int
    heads: int

    @property
    def dp(self) -> int:
        return max(16, power_of_two(self.d))

    @property
    def hp(self) -> int:
        return power_of_two(self.heads)

    @property
    def dhp(self) -> int:
        """At least 16, the least depth of a tensor-core product."""
        return max(16, power_of_two(self.d // self.heads))

    @property
    def fp(self) -> int:
        """A multiple of 32, and a power of two where one block of it may hold all."""
        return max(32, power_of_two(self.d_f)) if self.d_f <= 256 else -(-self.d_f // 64) * 64

    @property
    def head_columns(self) -> int:
        return self.hp * self.dhp

    @property
    def side_size(self) -> int:
        """Elements of the packed matrices of one layer: q, k, v, o, linear1, linear2^T."""
        return (4 * self.head_columns + 2 * self.fp) * self.dp

    def packed_matrices(self) -> int:
        return 2 * self.side_size

    def packed_vectors(self, num_tasks: int, num_behaviors: int) -> int:
        """Two pairs of biases, then scale and shift as [T, M, 4, 2, DP]."""
        return 2 * (self.fp + self.dp) + num_tasks * num_behaviors * 8 * self.dp

    def constants(self) -> dict[str, int]:
        return {
            "D": self.d,
            "H": self.heads,
            "DP": self.dp,
            "HP": self.hp,
            "DHP": self.dhp,
            "FP": self.fp,
        }


def obstacle(d: int, d_f: int, heads: int) -> str:
    """Why the kernels do not cover these sizes; the empty string where they do."""
    if d > MAX_D:
        return f"d = {d} is more than {MAX_D}"
    if d_f > MAX_D_F:
        return f"d_f = {d_f} is more than {MAX_D_F}"
    if Layout(d, d_f, heads).head_columns > MAX_HEAD_COLUMNS:
        return f"{heads} heads of {d // heads} columns are more than the kernels' tiles hold"
    return ""
