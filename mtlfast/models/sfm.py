"""MTL and SFM: a multi-task head on the fields, or on shared interactions of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.heads import ESMMConfig, HeadConfig, MMoEConfig, PLEConfig, SmallHeadsConfig
from mtlfast.interactions import GDCNConfig, InteractionConfig, MaskNetConfig, MemoNetConfig
from mtlfast.models.field_model import FieldModel, FieldModelConfig
from mtlfast.models.spec import DataSpec
from mtlfast.nn import InterestFunction


@dataclass(frozen=True)
class MTLConfig(FieldModelConfig):
    """Options of :class:`MTL`; those not listed here are :class:`FieldModelConfig`'s.

    Args:
        head: options of the multi-task head; in YAML its name, or a mapping with ``name``.
    """

    head: HeadConfig = field(default_factory=MMoEConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.head, HeadConfig):
            raise bad("head", "a HeadConfig", type(self.head).__name__)
        if self.train_after_parent and isinstance(self.head, (ESMMConfig, SmallHeadsConfig)):
            # The one models all samples by its products, the other adds a loss over all of them.
            raise bad("train_after_parent", f"False with the head {self.head.name}", True)


@dataclass(frozen=True)
class SFMConfig(MTLConfig):
    """Options of :class:`SFM`; those not listed here are :class:`FieldModelConfig`'s.

    Args:
        head: options of the multi-task head; in YAML its name, or a mapping with ``name``.
        interactions: the methods; in YAML their names, or mappings with ``name``.
        output_dim: width ``D_o`` of every method's output.
    """

    head: HeadConfig = field(default_factory=PLEConfig)
    interactions: tuple[InteractionConfig, ...] = (
        MaskNetConfig(),
        MemoNetConfig(),
        GDCNConfig(),
    )
    output_dim: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("output_dim", self.output_dim)
        if not self.interactions:
            raise bad("interactions", "at least one method", "none")


class MTL(FieldModel):
    """A multi-task head on the flattened fields: ShareBottom, MMoE, PLE, ... as DTN's baselines.

    Args:
        spec: sizes of the data.
        config: options; the defaults when None.
        backend: overrides ``config.backend``.
    """

    def __init__(
        self,
        spec: DataSpec,
        config: MTLConfig | None = None,
        *,
        backend: str | InterestFunction | None = None,
    ) -> None:
        config = MTLConfig() if config is None else config
        super().__init__(spec, config, backend)
        self.config = config
        head = config.head
        if type(self) is MTL:  # others give it no fields to choose from
            head = head.on_fields(config.embed_dim, spec.vocab_sizes, spec.item_field)
        self.head = head.build(self._head_input(config), self.num_tasks, spec.task_parents)
        if config.prior_bias and len(self.prior_rates):
            self.head.set_prior(self.prior_rates)

    def _head_input(self, config: MTLConfig) -> int:
        """The width of what the head reads."""
        return self.input_dim

    def logits(self, fields: Tensor, ids: Tensor) -> Tensor:
        return self.head(fields.flatten(1))

    def extra_loss(self, logits: Tensor, labels: Tensor | None = None) -> Tensor | None:
        return self.head.extra_loss(logits, labels)


class SFM(MTL):
    """Serial interactions: one shared set of methods, then the head (arXiv 2408.11611, Fig. 1).

    ``z = FIM_1(fields) || FIM_2(fields) || ...``, each of width ``D_o``; a head reads ``z``, CGC by
    default.

    Args:
        spec: sizes of the data.
        config: options; the defaults when None.
        backend: overrides ``config.backend``.
    """

    def __init__(
        self,
        spec: DataSpec,
        config: SFMConfig | None = None,
        *,
        backend: str | InterestFunction | None = None,
    ) -> None:
        config = SFMConfig() if config is None else config
        super().__init__(spec, config, backend=backend)
        self.interactions = nn.ModuleList(
            method.build(self.field_sizes, config.output_dim) for method in config.interactions
        )

    def _head_input(self, config: MTLConfig) -> int:
        if not isinstance(config, SFMConfig):
            raise bad("config", "an SFMConfig", type(config).__name__)
        return len(config.interactions) * config.output_dim

    def logits(self, fields: Tensor, ids: Tensor) -> Tensor:
        return self.head(torch.cat(self.modules_of(fields, ids), dim=-1))

    def modules_of(self, fields: Tensor, ids: Tensor) -> list[Tensor]:
        """The output ``[B, D_o]`` of every method, from what :meth:`logits` reads."""
        return [method(fields, ids) for method in self.interactions]
