"""Baselines of ``mtlfast.ops.multi_hash_lookup``: hashing with int64 tensors, then embeddings.

All hash every field once and reuse its key for all its pairs; all shrink before anything is
restored. Hash functions share one codebook; pairs have one weight each.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_GOLD = 0x9E3779B97F4A7C15 - 2**64


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shift(z, 31)


class Layout(NamedTuple):
    """What depends on the number of fields alone, made once."""

    first: Tensor  # [P], fields of the pairs
    second: Tensor
    incidence: Tensor  # [F, P], which pairs contain a field
    of_field: Tensor  # [F, F-1], the pairs of every field


def layout(
    num_fields: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Layout:
    pairs = torch.tensor(list(itertools.combinations(range(num_fields), 2)), device=device)
    first, second = pairs.t().contiguous()
    field = torch.arange(num_fields, device=device)
    incidence = (pairs.t()[:, None] == field[:, None]).any(0)
    of_field = incidence.nonzero()[:, 1].view(num_fields, num_fields - 1)
    return Layout(first, second, incidence.to(dtype), of_field)


def indices(ids: Tensor, layout: Layout, num_codewords: int, num_hashes: int) -> Tensor:
    """``[B, P, m]``."""
    keys = _mix64(ids + torch.arange(1, ids.shape[1] + 1, device=ids.device) * _GOLD)
    seeds = _mix64(torch.arange(1, num_hashes + 1, device=ids.device) * _GOLD)
    of_first = _mix64(keys[:, :, None] ^ seeds)
    hashed = _mix64(of_first[:, layout.first] ^ keys[:, layout.second, None])
    return _shift(_shift(hashed, 32) * num_codewords, 32)


def eager(
    ids: Tensor,
    codebook: Tensor,
    pair_weights: Tensor,
    *,
    layout: Layout,
    num_hashes: int,
    sparse: bool = False,
) -> Tensor:
    """``[B, F, m*c]`` of a codebook ``[n, c]``: gather all codewords, then one batched product."""
    rows = indices(ids, layout, codebook.shape[0], num_hashes)
    codewords = F.embedding(rows, codebook, sparse=sparse).flatten(2)  # [B, P, m*c]
    return (layout.incidence * pair_weights[:, None]) @ codewords


def bag(
    ids: Tensor,
    codebook: Tensor,
    pair_weights: Tensor,
    *,
    layout: Layout,
    num_hashes: int,
    sparse: bool = False,
) -> Tensor:
    """The same by ``embedding_bag``: a bag per field and hash function, every codeword twice."""
    batch, num_fields = ids.shape
    rows = indices(ids, layout, codebook.shape[0], num_hashes)[:, layout.of_field]
    weights = pair_weights[:, layout.of_field, None].expand(rows.shape)  # [B, F, F-1, m]
    out = F.embedding_bag(
        rows.transpose(2, 3).reshape(-1, num_fields - 1),
        codebook,
        mode="sum",
        per_sample_weights=weights.transpose(2, 3).reshape(-1, num_fields - 1),
        sparse=sparse,
    )
    return out.view(batch, num_fields, -1)
