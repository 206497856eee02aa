"""Pieces that several baselines of ``conditional_interest`` share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlfast.jagged import JaggedSequences
from mtlfast.reference import TransformerWeights


class Padded(NamedTuple):
    """Sequences as a padding code base stores them; may stand for ``JaggedSequences``."""

    blocks: list[Tensor]  # per behavior [U, L_b, d], valid rows first, zeros behind
    lengths: Tensor  # [M, U]


def pad(sequences: JaggedSequences | Padded) -> Padded:
    """Pads every behavior to its longest sequence in the batch, to 1 where all are empty."""
    if isinstance(sequences, Padded):
        return sequences
    widths = [max(int(longest), 1) for longest in sequences.lengths().amax(1)]
    return Padded(*sequences.to_padded(widths=widths))


def feed_forward(x: Tensor, layer: TransformerWeights) -> Tensor:
    """DTRN (CIKM 2023) Eq. 5; the ReLU overwrites what nobody needs again."""
    hidden = F.linear(x, layer.linear1_weight, layer.linear1_bias).relu_()
    return F.linear(hidden, layer.linear2_weight, layer.linear2_bias)


def normalize(x: Tensor, eps: float) -> Tensor:
    """Layer norm without scale and shift."""
    return F.layer_norm(x, x.shape[-1:], None, None, eps)


def decoder_tail(
    target: Tensor,
    attended: Tensor,
    layer: TransformerWeights,
    scale: Tensor,
    shift: Tensor,
    eps: float,
) -> Tensor:
    """From the decoder's attention ``[B, T, M, d]`` to the interests (Eq. 7)."""
    out3 = torch.addcmul(
        shift[:, :, 2], normalize(target[:, None, None] + attended, eps), scale[:, :, 2]
    )
    u3 = normalize(feed_forward(out3, layer).add_(out3), eps)
    return torch.addcmul(shift[:, :, 3], u3, scale[:, :, 3])


class Slots(NamedTuple):
    """Candidates arranged by user: ``[U, c]``, c the largest number of candidates of one user."""

    candidate: Tensor | None  # [U*c], a candidate (any one where the slot is free); None: identity
    slot: Tensor | None  # [B], where each candidate stands; None: identity
    width: int  # c


def slots(user_index: Tensor | None, num_users: int) -> Slots:
    """Arranges candidates by user; nothing to do when candidate i is user i's only one."""
    if user_index is None:
        return Slots(None, None, 1)
    order = torch.argsort(user_index, stable=True)
    counts = torch.bincount(user_index, minlength=num_users)
    width = max(int(counts.max()) if counts.numel() else 0, 1)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(user_index), device=user_index.device)
    rank = place - starts[user_index[order]]
    slot = torch.empty_like(user_index)
    slot[order] = user_index[order] * width + rank
    candidate = user_index.new_zeros(num_users * width)
    candidate[slot] = place
    return Slots(candidate, slot, width)
