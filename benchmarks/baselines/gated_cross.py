"""Baselines of ``mtlfast.ops.gated_cross``: torch's products, then the gate."""

from __future__ import annotations

import torch
from torch import Tensor


def eager(x: Tensor, x0: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Both maps of every network in one batched product, the gate in eager PyTorch."""
    value, gate = torch.bmm(x, weight.transpose(1, 2)).chunk(2, dim=-1)
    return torch.addcmul(x, x0, (value + bias.unsqueeze(1)) * gate.sigmoid())


def modules(x: Tensor, x0: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As published code has it: a loop over networks, two linear layers each."""
    width = x.shape[-1]
    return torch.stack(
        [
            x[g]
            + x0[g]
            * torch.nn.functional.linear(x[g], weight[g, :width], bias[g])
            * torch.sigmoid(torch.nn.functional.linear(x[g], weight[g, width:]))
            for g in range(x.shape[0])
        ]
    )
