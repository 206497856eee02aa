"""TFI: CGC with feature-interaction modules as experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count, check_dropout, check_units
from mtlfast.errors import bad
from mtlfast.heads import Towers
from mtlfast.heads.base import log_odds
from mtlfast.interactions import InteractionConfig, MaskNetConfig
from mtlfast.interactions.base import xavier_
from mtlfast.models.field_model import FieldModelConfig
from mtlfast.models.gated_model import GatedModel
from mtlfast.models.spec import DataSpec
from mtlfast.nn import InterestFunction, stacked_linear


@dataclass(frozen=True)
class TFIConfig(FieldModelConfig):
    """Options of :class:`TFI`; those not listed here are :class:`FieldModelConfig`'s.

    Args:
        interaction: the method; in YAML its name, or a mapping with ``name``.
        modules_per_group: modules ``J`` of each task, and as many shared ones.
        output_dim: width ``D_o`` of every module's output.
        tower_units: hidden widths of the towers.
        dropout: probability after every hidden activation of the towers.
    """

    interaction: InteractionConfig = field(default_factory=MaskNetConfig)
    modules_per_group: int = 3
    output_dim: int = 512
    tower_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.interaction, InteractionConfig):
            raise bad("interaction", "an InteractionConfig", type(self.interaction).__name__)
        check_count("modules_per_group", self.modules_per_group)
        check_count("output_dim", self.output_dim)
        check_units("tower_units", self.tower_units, allow_empty=True)
        check_dropout(self.dropout)


class TFIOutput(NamedTuple):
    """What :meth:`TFI.forward` returns when a hook is asked for; the rest is None."""

    logits: Tensor
    """``[B, T]``."""
    gates: Tensor | None = None
    """``[B, T, 2*J]``: the weights of a task's own modules, then of the shared ones."""
    modules: Tensor | None = None
    """``[(T+1)*J, B, D_o]``: the modules of each task, then the shared ones."""


class TFI(GatedModel[TFIOutput]):
    """Task-specific interactions (DTN, arXiv 2408.11611, Figure 1; CGC: Tang et al., RecSys 2020)::

        candidates of task t = J modules of its own and J shared ones, all of one method
        s_t = sum_e softmax(x W_t + c_t)_e F_e(x);   o_t = tower_t(s_t)

    All ``(T+1) J`` modules are computed together.

    Args:
        spec: sizes of the data.
        config: options; the defaults when None.
        backend: overrides ``config.backend``.

    Parameters of the gates: ``gate_weight [T, 2*J, D_x]``, ``gate_bias [T, 2*J]``, own modules
    first.
    """

    def __init__(
        self,
        spec: DataSpec,
        config: TFIConfig | None = None,
        *,
        backend: str | InterestFunction | None = None,
    ) -> None:
        config = TFIConfig() if config is None else config
        super().__init__(spec, config, backend)
        self.config = config
        self.modules_per_group = per_group = config.modules_per_group
        self.interaction = config.interaction.build(
            self.field_sizes, config.output_dim, (self.num_tasks + 1) * per_group
        )
        self.gate_weight = nn.Parameter(torch.empty(self.num_tasks, 2 * per_group, self.input_dim))
        self.gate_bias = nn.Parameter(torch.zeros(self.num_tasks, 2 * per_group))
        xavier_(self.gate_weight)
        self.towers = Towers(self.num_tasks, config.output_dim, config.tower_units, config.dropout)
        if config.prior_bias and len(self.prior_rates):
            with torch.no_grad():
                self.towers.bias.copy_(log_odds(self.prior_rates))

    def _compute(self, fields: Tensor, ids: Tensor) -> TFIOutput:
        own_count = self.num_tasks * self.modules_per_group
        outputs = self.interaction(fields, ids)  # [(T+1)*J, B, D_o], the shared ones last
        own = outputs[:own_count].unflatten(0, (self.num_tasks, -1)).transpose(0, 1)
        shared = outputs[own_count:].unsqueeze(1)
        x = fields.flatten(1).unsqueeze(0)
        weights = stacked_linear(x, self.gate_weight, self.gate_bias).softmax(dim=-1)
        gates = weights.permute(2, 0, 1).unsqueeze(-1)  # [2*J, T, B, 1]
        mixed = (gates[: self.modules_per_group] * own).sum(dim=0)
        mixed = mixed + (gates[self.modules_per_group :] * shared).sum(dim=0)
        return TFIOutput(self.towers(mixed), weights.transpose(0, 1), outputs)
