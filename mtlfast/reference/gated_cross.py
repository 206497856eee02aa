"""Reference of ``gated_cross``: a layer of GDCN, for several networks at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import bad
from .stacked_linear import stacked_linear


def check_arguments(x: Tensor, x0: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Shapes and devices; raises ValueError naming the argument."""
    if x.dim() != 3:
        raise bad("x", "shape [G, R, D]", list(x.shape))
    groups, _, width = x.shape
    expected = {
        "x0": (x0, tuple(x.shape)),
        "weight": (weight, (groups, 2 * width, width)),
        "bias": (bias, (groups, width)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise bad(name, f"shape {list(shape)}", list(tensor.shape))
        if tensor.device != x.device:
            raise bad(name, f"device {x.device}", tensor.device)


def gated_cross(x: Tensor, x0: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The gated cross layers of ``G`` networks (GDCN, Wang et al., CIKM 2023)::

        y_g = x_g + x0_g * (x_g Wc_g^T + b_g) * sigmoid(x_g Wg_g^T)

    Args:
        x: ``[G, R, D]``, what the layer below put out.
        x0: ``[G, R, D]``, the input of the first layer.
        weight: ``[G, 2*D, D]`` in ``nn.Linear`` layout, first the rows of ``Wc``, then of ``Wg``.
        bias: ``[G, D]``.

    Returns:
        ``[G, R, D]``.

    Raises:
        ValueError: shapes or devices that do not agree.
    """
    check_arguments(x, x0, weight, bias)
    value, gate = stacked_linear(x, weight).chunk(2, dim=-1)
    return torch.addcmul(x, x0, (value + bias.unsqueeze(1)) * gate.sigmoid())
