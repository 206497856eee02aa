"""What DTRN and the models it is compared with share: fields and histories in, a head on top."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from mtlfast.errors import bad
from mtlfast.heads import HeadConfig
from mtlfast.models.loss import task_losses, weighted_sum
from mtlfast.models.spec import DataSpec
from mtlfast.nn import FeatureEmbedding
from mtlfast.nn.constants import Constants


class HistoryConfig(Protocol):
    """The options that :class:`HistoryModel` reads."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def head(self) -> HeadConfig: ...
    @property
    def share_item_table(self) -> bool: ...
    @property
    def init_std(self) -> float: ...
    @property
    def task_weights(self) -> tuple[float, ...] | None: ...
    @property
    def prior_bias(self) -> bool: ...
    @property
    def sparse_grad(self) -> bool: ...
    @property
    def uncertainty_weights(self) -> bool: ...


class HistoryModel(Constants):
    """A model of sparse fields and behavior sequences: embedding first, head last.

    A subclass builds what is between them, then calls :meth:`build_head`.

    Raises:
        ValueError: data without an item field or behaviors, or task weights that do not fit it.
    """

    task_weights: Tensor | None

    def __init__(self, spec: DataSpec, config: HistoryConfig) -> None:
        super().__init__()
        self.num_tasks = len(spec.task_parents)
        self.num_behaviors = len(spec.max_lengths)
        if spec.item_field is None or not self.num_behaviors:
            raise bad("spec", "data with an item field and at least one behavior", "data without")
        if spec.multi_valued:
            raise bad("spec", "fields with one id per row", "multi-valued ones")
        if config.task_weights is not None and len(config.task_weights) != self.num_tasks:
            raise bad("task_weights", f"{self.num_tasks} weights", len(config.task_weights))
        self.embedding = FeatureEmbedding(
            spec.vocab_sizes,
            config.embed_dim,
            item_field=spec.item_field,
            num_behaviors=self.num_behaviors,
            share_item_table=config.share_item_table,
            sparse_grad=config.sparse_grad,
            init_std=config.init_std,
        )

    def build_head(self, spec: DataSpec, config: HistoryConfig, width: int) -> None:
        """The head on ``width`` inputs per task, and the tasks' weights in the loss."""
        head = config.head.on_fields(config.embed_dim, spec.vocab_sizes, spec.item_field)
        self.head = head.build(width, self.num_tasks, spec.task_parents)
        if config.prior_bias and len(spec.positive_rates):
            self.head.set_prior(spec.positive_rates)
        weights = config.task_weights
        self.register_constant(
            "task_weights", None if weights is None else lambda: torch.tensor(weights)
        )
        self.log_variances = (
            nn.Parameter(torch.zeros(self.num_tasks)) if config.uncertainty_weights else None
        )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted sum of the tasks' mean binary cross-entropies, plus the head's own term."""
        losses = task_losses(logits, labels)
        loss = weighted_sum(losses, self.task_weights, self.log_variances)
        extra = self.head.extra_loss(logits, labels)
        return loss if extra is None else loss + extra
