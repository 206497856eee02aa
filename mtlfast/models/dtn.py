"""DTN, the deep task-specific network: interaction modules per task, gates, a graph of tasks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count, check_dropout, check_units
from mtlfast.errors import bad
from mtlfast.heads import Towers
from mtlfast.heads.base import log_odds
from mtlfast.interactions import (
    GDCNConfig,
    Interaction,
    InteractionConfig,
    MaskNetConfig,
    MemoNetConfig,
)
from mtlfast.models.dtn_gates import GateKind, InteractionGates
from mtlfast.models.field_model import FieldModelConfig
from mtlfast.models.gated_model import GatedModel
from mtlfast.models.spec import DataSpec
from mtlfast.models.task_graph import parse_dependencies, task_order
from mtlfast.nn import InterestFunction


class ModuleKey(NamedTuple):
    """Which feature-interaction module: of which method, in which group, which of its ``J``."""

    method: int
    group: int
    """A task, or ``T`` for the shared group."""
    number: int


@dataclass(frozen=True)
class DTNConfig(FieldModelConfig):
    """Options of :class:`DTN`; those not listed here are :class:`FieldModelConfig`'s.

    Args:
        interactions: the methods; in YAML their names, or mappings with ``name``.
        modules_per_group: modules ``J`` of each method in each group.
        output_dim: width ``D_o`` of every module's output.
        gate: "paper" (logits from the input) or "released" (from each module's own output, with
            ReLU).
        combine: "concat" (paper) or "sum" (released) of the two gates' outputs.
        dependencies: which task's modules are scaled by which task's probability: "earlier" (each
            task depends on all before it), "parents" (the data's tree), "none", or pairs such as
            "cvr:atc,cvr:ctr,atc:ctr" (dependent:precedent).
        tsn_stop_grad: no gradient through those probabilities.
        tower_units: hidden widths of the towers.
        dropout: probability after every hidden activation of the towers.
        removed: modules that were trimmed, as (method, group, number); see :func:`trim`.
    """

    interactions: tuple[InteractionConfig, ...] = (
        MaskNetConfig(),
        MemoNetConfig(),
        GDCNConfig(),
    )
    modules_per_group: int = 1
    output_dim: int = 512
    gate: GateKind = "paper"
    combine: Literal["concat", "sum"] = "concat"
    dependencies: str = "earlier"
    tsn_stop_grad: bool = True
    tower_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    removed: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.interactions:
            raise bad("interactions", "at least one method", "none")
        check_count("modules_per_group", self.modules_per_group)
        check_count("output_dim", self.output_dim)
        if self.gate not in ("paper", "released"):
            raise bad("gate", "paper or released", repr(self.gate))
        if self.combine not in ("concat", "sum"):
            raise bad("combine", "concat or sum", repr(self.combine))
        check_units("tower_units", self.tower_units, allow_empty=True)
        check_dropout(self.dropout)

    @classmethod
    def released(cls, **options: Any) -> DTNConfig:
        """The set-up of the authors' published code for Ali-CCP, where it differs from the paper.

        Options that are given win. The code's frozen affine in front of the interactions is left
        out: it is a constant scale.
        """
        config: dict[str, Any] = {
            "embed_dim": 64,
            "interactions": (
                MaskNetConfig(preset="released"),
                MemoNetConfig(num_codewords=100_000, shrinking="none"),
                GDCNConfig(),
            ),
            "output_dim": 256,
            "gate": "released",
            "combine": "sum",
        }
        return cls(**{**config, **options})


class DTNOutput(NamedTuple):
    """What :meth:`DTN.forward` returns when a hook is asked for; the rest is None."""

    logits: Tensor
    """``[B, T]``."""
    gates: Tensor | None = None
    """``[B, T, 2, n]``: the weights of task ``t``'s gates over all ``n`` modules, first of the gate
    over the other groups, then of that over its own; 0 for modules that are no candidates. Before
    the scaling by probabilities."""
    modules: tuple[Tensor, ...] | None = None
    """Per method ``[n_method, B, D_o]``; concatenated they have the order of
    :attr:`DTN.module_keys`."""


class DTN(GatedModel[DTNOutput]):
    """Task-specific interactions (DTN, arXiv 2408.11611, Eq. 3 and Fig. 3) for any graph of tasks.

    One group of feature-interaction modules per task and a shared one, ``J`` of every method in
    each. With ``A_k`` all modules outside task ``k``'s own group, each of an ancestor ``u`` of
    ``k`` multiplied by ``p_u``::

        own_k   = sum_i softmax(x W_k + c_k)_i F_i     over the modules of group k
        other_k = sum_i softmax(x W'_k + c'_k)_i A_i   over all others
        o_k     = tower_k(other_k || own_k),   p_k = sigmoid(o_k)

    Tasks come in the order of their dependencies; where there are none all are computed at once.
    The scaling is applied to the gates' weights, which is the same. Modules of one method are
    computed together over all groups.

    Submodules: ``embedding``, ``interactions`` (one per method), ``gates``, ``towers``.

    Args:
        spec: sizes of the data.
        config: options; the defaults when None.
        backend: overrides ``config.backend``.

    Attributes:
        module_keys: which module stands at each place of the gates, method by method.
        ancestors: per task those it depends on.
    """

    def __init__(
        self,
        spec: DataSpec,
        config: DTNConfig | None = None,
        *,
        backend: str | InterestFunction | None = None,
    ) -> None:
        config = DTNConfig() if config is None else config
        super().__init__(spec, config, backend)
        self.config = config
        tasks = self.num_tasks
        names = getattr(spec, "tasks", None)
        self.ancestors = parse_dependencies(config.dependencies, tasks, spec.task_parents, names)
        self.order = task_order(self.ancestors)

        every = [
            ModuleKey(method, group, number)
            for method in range(len(config.interactions))
            for group in range(tasks + 1)
            for number in range(config.modules_per_group)
        ]
        removed = {ModuleKey(*key) for key in config.removed}
        if not removed <= set(every):
            raise bad("removed", "modules of this model", sorted(removed - set(every)))
        self.module_keys = tuple(key for key in every if key not in removed)
        if not self.module_keys:
            raise bad("removed", "at least one module left", "none")
        self.interactions = nn.ModuleList(
            config.interactions[method].build(self.field_sizes, config.output_dim, count)
            for method, count in self._module_counts()
        )
        groups = [key.group for key in self.module_keys]
        self.gates = InteractionGates(tasks, groups, self.input_dim, config.output_dim, config.gate)
        width = config.output_dim * (2 if config.combine == "concat" else 1)
        self.towers = Towers(tasks, width, config.tower_units, config.dropout)
        if config.prior_bias and len(self.prior_rates):
            with torch.no_grad():
                self.towers.bias.copy_(log_odds(self.prior_rates))

    def _compute(self, fields: Tensor, ids: Tensor) -> DTNOutput:
        outputs = tuple(method(fields, ids) for method in self._modules_of_methods())
        modules = outputs[0] if len(outputs) == 1 else torch.cat(outputs)  # [n, B, D_o]
        scores = self.gates.scores(fields.flatten(1), modules)  # [B, T, n]
        if not any(self.ancestors):
            weights = self.gates.weights(scores)
            return DTNOutput(self._towers(weights, modules), weights, outputs)

        logits: list[Tensor | None] = [None] * self.num_tasks
        gates: list[Tensor | None] = [None] * self.num_tasks
        ones = torch.ones_like(scores[:, 0, 0])
        for task in self.order:
            scale = None
            if self.ancestors[task]:
                scale = torch.stack(
                    [
                        self._probability(logits[u]) if u in self.ancestors[task] else ones
                        for u in range(self.num_tasks)
                    ]
                    + [ones],
                    dim=1,
                ).index_select(1, self.gates.group_of)  # [B, n]
            row = slice(task, task + 1)
            weights = self.gates.weights(scores[:, row], row, scale)  # [B, 1, 2, n]
            gates[task] = weights
            if scale is not None:
                # Of the gate over the others; a task is no ancestor of itself.
                weights = weights * scale[:, None, None]
            logits[task] = self._towers(weights, modules, row)
        return DTNOutput(torch.cat(_all(logits), dim=1), torch.cat(_all(gates), dim=1), outputs)

    def _modules_of_methods(self) -> list[Interaction]:
        return [method for method in self.interactions if isinstance(method, Interaction)]

    def _probability(self, logit: Tensor | None) -> Tensor:
        if logit is None:
            raise RuntimeError("a task was read before it was computed")
        probability = logit.squeeze(1).sigmoid()
        return probability.detach() if self.config.tsn_stop_grad else probability

    def _towers(self, weights: Tensor, modules: Tensor, tasks: slice | None = None) -> Tensor:
        """Logits of some tasks from their gates' weights ``[B, T', 2, n]``."""
        if self.config.combine == "sum":
            weights = weights.sum(dim=2)  # the two gates have no module in common
            mixed = torch.einsum("btn,nbd->tbd", weights, modules)
        else:
            mixed = torch.einsum("btgn,nbd->tbgd", weights, modules).flatten(2)
        return self.towers(mixed, tasks)

    def _module_counts(self) -> list[tuple[int, int]]:
        """The methods that have modules, and how many."""
        methods = [key.method for key in self.module_keys]
        return [(method, methods.count(method)) for method in sorted(set(methods))]

    def remove_modules(self, places: Collection[int]) -> None:
        """Remove the modules at these places of :attr:`module_keys` with their weights; in place.

        An optimizer of this model must be made anew.

        Raises:
            ValueError: for places that do not exist, or if nothing would be left.
        """
        gone = set(places)
        if not gone <= set(range(len(self.module_keys))) or len(gone) == len(self.module_keys):
            raise bad("places", f"some of {len(self.module_keys)} places, not all", sorted(gone))
        if not gone:
            return
        left, first = [], 0
        for (_, count), interaction in zip(
            self._module_counts(), self._modules_of_methods(), strict=True
        ):
            kept = [i for i in range(count) if first + i not in gone]
            first += count
            if kept:
                interaction.select(kept)
                left.append(interaction)
        self.interactions = nn.ModuleList(left)
        self.gates.keep([i for i in range(len(self.module_keys)) if i not in gone])
        lost = [(k.method, k.group, k.number) for k in (self.module_keys[i] for i in sorted(gone))]
        self.config = replace(self.config, removed=(*self.config.removed, *lost))
        self.module_keys = tuple(k for i, k in enumerate(self.module_keys) if i not in gone)

    def module_names(self) -> list[str]:
        """What stands at each place of the gates: method, group, number."""
        names = []
        for key in self.module_keys:
            group = "shared" if key.group == self.num_tasks else f"task{key.group}"
            names.append(f"{self.config.interactions[key.method].name}/{group}/{key.number}")
        return names


def _all(parts: list[Tensor | None]) -> list[Tensor]:
    return [part for part in parts if part is not None]
