"""``multi_hash_indices`` and ``multi_hash_lookup``: the public functions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference as _reference
from ..reference.multi_hash_lookup import check_lookup
from . import _backend


def multi_hash_indices(
    ids: Tensor,
    num_codewords: int,
    *,
    num_hashes: int,
    order: int = 2,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    first_hash: int = 0,
) -> Tensor:
    """Which codewords every crossed pair of fields uses: int64 ``[B, P, num_hashes]``.

    See :func:`mtlfast.reference.multi_hash_indices`.
    """
    return _reference.multi_hash_indices(
        ids,
        num_codewords,
        num_hashes=num_hashes,
        order=order,
        key_fields=key_fields,
        hash=hash,
        first_hash=first_hash,
    )


def multi_hash_lookup(
    ids: Tensor,
    codebook: Tensor,
    *,
    num_hashes: int,
    order: int = 2,
    pair_weights: Tensor | None = None,
    codeword_weights: Tensor | None = None,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    pool: bool = True,
    first_hash: int = 0,
    sparse_grad: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Codewords of every crossed pair of fields, weighted, and summed for every field.

    See :func:`mtlfast.reference.multi_hash_lookup`.
    """
    check_lookup(
        ids,
        codebook,
        num_hashes,
        order,
        pair_weights,
        codeword_weights,
        key_fields,
        hash,
        pool,
        first_hash,
    )

    def obstacle(name: str) -> str:
        missing = _backend.missing_obstacle(name, ids.device.type)
        return missing or "this build has no C++ op of that name"

    _backend.choose("multi_hash_lookup", backend, ids.device.type, obstacle)
    return _reference.multi_hash_lookup(
        ids,
        codebook,
        num_hashes=num_hashes,
        order=order,
        pair_weights=pair_weights,
        codeword_weights=codeword_weights,
        key_fields=key_fields,
        hash=hash,
        pool=pool,
        first_hash=first_hash,
        sparse_grad=sparse_grad,
    )
