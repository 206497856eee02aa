"""Triton kernels of ``multi_hash_indices`` and ``multi_hash_lookup``, forward and backward.

Source: MemoNet (CIKM 2023); the hash is that of ``csrc/common/hash.h``, bit for bit.

forward
    pooled     a row is a (sample, field): its crosses are hashed, looked up, weighted and summed in
               registers. Every codeword is read once per field of its cross, from a near cache but
               for the first time; nothing of size [B, P, m, c] exists.
    crosses    without pooling, a row is a (sample, cross).
backward
    weights    a row is a (sample, cross).
    codebook   one entry per codeword used, sorted by row of the codebook; runs of equal rows are
               summed chunk by chunk, then over chunks, in an order that depends on the data alone.

Results have the same bits in every run; there are no atomics. Nothing is read back to the host but,
for a sparse gradient, how many rows it has.
"""

from __future__ import annotations

from typing import Any


def aot_cases(capability: int) -> list[Any]:
    """What ships, for compilation without a GPU (``kernels/aot.py``)."""
    from .shipped import cases

    return cases()


def indices(*inputs: Any) -> Any:
    """``[B, P, m]``, with the arguments of ``mtlfast::multi_hash_indices``."""
    from .lookup import indices

    return indices(*inputs)


def forward(*inputs: Any) -> Any:
    """The launches, with the arguments of ``mtlfast::multi_hash_lookup_forward``."""
    from .lookup import forward

    return forward(*inputs)


def backward(*inputs: Any) -> Any:
    """The launches, with the arguments of ``mtlfast::multi_hash_lookup_backward``."""
    from .gradients import backward

    return backward(*inputs)


def backward_sparse(*inputs: Any) -> Any:
    """The launches, with the arguments of ``mtlfast::multi_hash_lookup_backward_sparse``."""
    from .gradients import backward_sparse

    return backward_sparse(*inputs)
