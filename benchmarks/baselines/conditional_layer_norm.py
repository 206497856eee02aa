"""Baseline of ``mtlfast.ops.conditional_layer_norm``: eager layer norm, then the affine map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def eager(
    x: Tensor, scale: Tensor, shift: Tensor, *, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``scale * normalized(x + residual) + shift``, everything broadcast."""
    if residual is not None:
        x = x + residual
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], None, None, eps), scale)
