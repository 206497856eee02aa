"""M2M, a head whose weights a scenario generates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast._checks import check_count, check_units
from mtlfast.errors import bad
from mtlfast.heads.base import MultiTaskHead, shared_rows
from mtlfast.nn.constants import Constants
from mtlfast.nn.stacked import stacked_linear


class MetaLinear(nn.Module):
    """``leaky_relu(x W + b)`` with ``W`` and ``b`` made of the scenario of each sample.

    ``W = reshape(s V + v)`` starts near ``reshape(v)``, an ordinary Xavier matrix.

    Args:
        scenario_dim: width of ``s``.
        width: of ``x`` and of the result.
    """

    def __init__(self, scenario_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Linear(scenario_dim, width * width)
        self.bias = nn.Linear(scenario_dim, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See the class."""
        with torch.no_grad():
            nn.init.xavier_uniform_(self.weight.weight, gain=0.1)
            nn.init.xavier_uniform_(self.weight.bias.view(self.width, self.width))
            nn.init.xavier_uniform_(self.bias.weight)
            nn.init.zeros_(self.bias.bias)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """``[..., R, width]`` for ``x`` of that shape and scenarios ``[..., scenario_dim]``."""
        weight = self.weight(scenario).unflatten(-1, (self.width, self.width))
        return F.leaky_relu(torch.matmul(x, weight) + self.bias(scenario).unsqueeze(-2))


class M2M(Constants, MultiTaskHead):
    """Shared experts, mixed per task by attention that depends on the scenario (M2M).

    Zhang et al., *Leaving No One Behind: A Multi-Scenario Multi-Task Meta Learning Approach for
    Advertiser Modeling*, WSDM 2022. With experts ``E_i``, task vectors ``c_t`` and scenario ``s``,
    all of width ``v``::

        a_ti = softmax_i(v_t . Meta_s(E_i || c_t));   L_0 = sum_i a_ti E_i
        L_j = leaky_relu(Meta_js(L_{j-1}) + L_{j-1});  o_t = linear_t(L_n)

    ``Meta_s`` is a layer whose weights ``s`` generates, :class:`MetaLinear`. The scenario is read
    from some columns of the input.

    Args:
        input_dim: ``D``.
        num_tasks: ``T``.
        columns: the input's columns with the scenario; all of them when None.
        num_experts: ``K``.
        expert_units: widths of each expert; the last is ``v``.
        meta_layers: generated layers of the attention.
        tower_layers: generated layers of the towers, ``n``.
        tower_units: hidden widths of ordinary layers behind them.
        dropout: probability after every hidden activation of those.
    """

    columns: Tensor | None

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        *,
        columns: Sequence[int] | None = None,
        num_experts: int = 4,
        expert_units: Sequence[int] = (64, 16),
        meta_layers: int = 1,
        tower_layers: int = 2,
        tower_units: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        check_units("expert_units", expert_units)
        for name, count in (("num_experts", num_experts), ("meta_layers", meta_layers)):
            check_count(name, count)
        if tower_layers < 0:
            raise bad("tower_layers", "at least 0", tower_layers)
        if columns is not None and (not columns or any(not 0 <= c < input_dim for c in columns)):
            raise bad("columns", f"some in [0, {input_dim})", list(columns))
        width = expert_units[-1]
        super().__init__(input_dim, num_tasks, width, tower_units, dropout)
        self.num_experts = num_experts
        self.register_constant(
            "columns", None if columns is None else lambda: torch.tensor(columns)
        )
        self.expert_weights = nn.ParameterList(
            torch.empty(num_experts, n_out, n_in)
            for n_in, n_out in pairwise((input_dim, *expert_units))
        )
        self.expert_biases = nn.ParameterList(torch.empty(num_experts, n) for n in expert_units)
        self.task_embedding = nn.Parameter(torch.empty(num_tasks, width))
        self.task = nn.Linear(width, width)
        self.scenario = nn.Linear(input_dim if columns is None else len(columns), width)
        self.attention = nn.ModuleList(MetaLinear(width, 2 * width) for _ in range(meta_layers))
        self.score = nn.Parameter(torch.empty(num_tasks, 2 * width))
        self.meta_towers = nn.ModuleList(MetaLinear(width, width) for _ in range(tower_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases, unit task vectors."""
        for weight, bias in zip(self.expert_weights, self.expert_biases, strict=True):
            for expert in weight:
                nn.init.xavier_uniform_(expert)
            nn.init.zeros_(bias)
        nn.init.normal_(self.task_embedding, std=self.repr_dim**-0.5)
        nn.init.xavier_uniform_(self.score)
        self.towers.reset_parameters()

    def task_repr(self, x: Tensor) -> Tensor:
        streams, batch, _ = x.shape
        experts = shared_rows(x)
        for weight, bias in zip(self.expert_weights, self.expert_biases, strict=True):
            experts = F.leaky_relu(stacked_linear(experts, weight, bias))
        experts = experts.view(self.num_experts, streams, batch, self.repr_dim)
        experts = experts.permute(1, 2, 0, 3)  # [S, B, K, v]
        scenario = F.leaky_relu(self.scenario(x if self.columns is None else x[..., self.columns]))
        tasks = F.leaky_relu(self.task(self.task_embedding))[:, None, None, :]
        shape = (self.num_tasks, batch, self.num_experts, self.repr_dim)
        mixed = torch.cat((experts.expand(shape), tasks.expand(shape)), dim=-1)
        for layer in self.attention:
            mixed = layer(mixed, scenario)
        attention = (mixed * self.score[:, None, None, :]).sum(dim=-1).softmax(dim=-1)
        found = (attention.unsqueeze(-1) * experts).sum(dim=2)  # [T, B, v]
        for layer in self.meta_towers:
            found = F.leaky_relu(layer(found.unsqueeze(2), scenario).squeeze(2) + found)
        return found
