"""Reference of ``stacked_linear``: several linear maps of one shape, as a few matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import bad


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Shapes and devices; raises ValueError naming the argument."""
    if x.dim() != 3:
        raise bad("x", "shape [S, R, in]", list(x.shape))
    if weight.dim() != 3 or weight.shape[2] != x.shape[2]:
        raise bad("weight", f"shape [G, out, {x.shape[2]}]", list(weight.shape))
    if x.shape[0] < 1 or weight.shape[0] % x.shape[0] != 0:
        raise bad("weight", f"a multiple of x's {x.shape[0]} streams of maps", weight.shape[0])
    if bias is not None and bias.shape != weight.shape[:2]:
        raise bad("bias", f"shape {list(weight.shape[:2])}", list(bias.shape))
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise bad(name, f"device {x.device}", tensor.device)


def stacked_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """``G`` linear maps, of which each of ``S`` inputs feeds ``G / S`` consecutive ones::

        y_g = act(x_s W_g^T + b_g),   s = g // (G / S)

    Args:
        x: ``[S, R, in]``, rows of ``S`` inputs.
        weight: ``[G, out, in]``, each map in ``nn.Linear`` layout.
        bias: ``[G, out]``.
        relu: followed by a ReLU.

    Returns:
        ``[G, R, out]``, possibly a transposed view.

    Raises:
        ValueError: shapes or devices that do not agree.
    """
    check_arguments(x, weight, bias)
    groups, width, in_dim = weight.shape
    streams, rows, _ = x.shape
    per_stream = groups // streams
    if streams == 1:
        flat_bias = None if bias is None else bias.flatten()
        out = F.linear(x[0], weight.reshape(groups * width, in_dim), flat_bias)
        # In place, and before any view: in place on a view costs the backward a copy.
        out = out.relu_() if relu else out
        return out.view(rows, groups, width).transpose(0, 1)
    grouped = weight.reshape(streams, per_stream * width, in_dim).transpose(1, 2)
    if bias is None:
        out = torch.bmm(x, grouped)
    else:
        out = torch.baddbmm(bias.reshape(streams, 1, per_stream * width), x, grouped)
    out = out.relu_() if relu else out
    if per_stream == 1:
        return out
    out = out.view(streams, rows, per_stream, width).transpose(1, 2)
    return out.reshape(groups, rows, width)
