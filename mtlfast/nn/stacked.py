"""Several small networks of one shape, computed as a few large matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast.ops import stacked_linear

__all__ = ["StackedMLP", "stacked_linear"]


class StackedMLP(nn.Module):
    """``num_networks`` multi-layer perceptrons of one shape, ReLU after every layer.

    Parameters ``weights.{i} [G, out, in]`` and ``biases.{i} [G, out]``.

    Args:
        num_networks: ``G``.
        input_dim: width of the input.
        units: width of each layer; with none the module passes its input on.
        dropout: probability after every activation.
    """

    def __init__(
        self, num_networks: int, input_dim: int, units: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_networks = num_networks
        self.dropout = dropout
        widths = [input_dim, *units]
        self.output_dim = widths[-1]
        self.weights = nn.ParameterList(
            torch.empty(num_networks, n_out, n_in) for n_in, n_out in pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.empty(num_networks, width) for width in units)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights per network, zero biases."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            for network in weight:
                nn.init.xavier_uniform_(network)
            nn.init.zeros_(bias)

    def forward(self, x: Tensor, networks: slice | None = None) -> Tensor:
        """``[S, R, in]`` to ``[G, R, out]``; ``S`` divides ``G``, see :func:`stacked_linear`.

        ``networks`` computes only some of the ``G``, which ``G`` then stands for.
        """
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if networks is not None:
                weight, bias = weight[networks], bias[networks]
            x = stacked_linear(x, weight, bias, relu=True)
            if self.dropout:
                x = F.dropout(x, self.dropout, self.training)
        return x
