"""The hypernetwork that writes every conditional layer-norm table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_NORMS = 4
"""Layer-norm positions of one encoder layer and one decoder layer (DTRN Eq. 7)."""


class LayerNormHypernetwork(nn.Module):
    """Two-layer ReLU networks, one per layer-norm position and per scale/shift, as one batch.

    DTRN (CIKM 2023) Eq. 2. Axis 0 of every parameter is 0 = scale, 1 = shift; axis 1 is the
    layer-norm position. At the start every scale is exactly 1 and every shift exactly 0
    (``weight2 = 0``), so that a conditional layer norm begins as an ordinary one.

    Args:
        input_dim: width of the conditional input, ``2 d`` for a task and a behavior embedding.
        hidden_dim: hidden width ``u``.
        output_dim: width ``d`` of the modulated layer norms.
        share_positions: one network for scales and one for shifts, the same at every position; axis
            1 of every parameter then has but one entry.
        num_positions: of layer norms.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        *,
        share_positions: bool = False,
        num_positions: int = NUM_NORMS,
    ) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.networks = 1 if share_positions else num_positions
        """Networks for scales, and as many for shifts."""
        self.input_dim = input_dim
        self.hidden_dim = hidden_dim
        self.output_dim = output_dim
        self.weight1 = nn.Parameter(torch.empty(2, self.networks, input_dim, hidden_dim))
        self.bias1 = nn.Parameter(torch.empty(2, self.networks, hidden_dim))
        self.weight2 = nn.Parameter(torch.empty(2, self.networks, hidden_dim, output_dim))
        self.bias2 = nn.Parameter(torch.empty(2, self.networks, output_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform first layers and the identity start."""
        for network in self.weight1.flatten(0, 1):
            nn.init.xavier_uniform_(network)
        nn.init.zeros_(self.bias1)
        nn.init.zeros_(self.weight2)
        with torch.no_grad():
            self.bias2[0].fill_(1.0)
            self.bias2[1].zero_()

    def forward(self, condition: Tensor) -> Tensor:
        """``condition [P, input_dim]`` to ``[2, num_positions, P, output_dim]``."""
        # In place where autograd allows it: the hidden layer is what the next product saves.
        x = condition.unsqueeze(0).expand(2 * self.networks, -1, -1)
        hidden = torch.baddbmm(
            self.bias1.flatten(0, 1).unsqueeze(1), x, self.weight1.flatten(0, 1)
        ).relu_()
        out = torch.baddbmm(
            self.bias2.flatten(0, 1).unsqueeze(1), hidden, self.weight2.flatten(0, 1)
        )
        out = out.view(2, self.networks, condition.shape[0], self.output_dim)
        return out.expand(-1, self.num_positions, -1, -1)

    def extra_repr(self) -> str:
        shared = ", share_positions=True" if self.networks == 1 else ""
        return f"{self.input_dim}, {self.hidden_dim}, {self.output_dim}{shared}"
