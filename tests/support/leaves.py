"""Leaves with unusual memory."""

from __future__ import annotations

from torch import Tensor


def expanded(t: Tensor, dim: int) -> Tensor:
    """A leaf of the same shape whose elements along ``dim`` are one in memory.

    Its gradient has them all: kernels that go by strides alone get this wrong.
    """
    one = t.detach().narrow(dim, 0, min(1, t.shape[dim]))
    return one.expand(t.shape).requires_grad_()


def dense(t: Tensor) -> Tensor:
    """A contiguous leaf with the same values."""
    return t.detach().contiguous().clone().requires_grad_()
