"""What models on sparse fields alone have in common."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtlfast._config import from_mapping, to_mapping
from mtlfast.bags import FieldBags
from mtlfast.errors import bad
from mtlfast.interactions import FieldSizes
from mtlfast.jagged import JaggedSequences
from mtlfast.models.loss import task_losses, weighted_sum
from mtlfast.models.spec import DataSpec
from mtlfast.nn import FieldEmbedding, InterestFunction
from mtlfast.nn.constants import Constants

C = TypeVar("C", bound="FieldModelConfig")


@dataclass(frozen=True)
class FieldModelConfig:
    """Options of every model on sparse fields.

    Args:
        embed_dim: embedding width ``d`` of every field.
        init_std: standard deviation of the initial embeddings.
        task_weights: weight of each task's loss; 1 each when None.
        positive_weights: weight of the positive samples within each task's loss; 1 when None.
        prior_bias: start the output biases at the log-odds of the data's positive rates.
        sparse_grad: sparse gradient of the embedding table.
        backend: implementation of the fused ops.
        train_after_parent: a task that follows another in the data's tree learns from the samples
            alone that are positive for that one, conversion from the clicked. By default every task
            learns from all samples, as in DTN's published code.
        uncertainty_weights: learn how much each task's loss counts, on top of ``task_weights``
            (Kendall et al., CVPR 2018).

    Raises:
        ValueError: naming the field.
    """

    embed_dim: int = 16
    init_std: float = 0.01
    task_weights: tuple[float, ...] | None = None
    positive_weights: tuple[float, ...] | None = None
    prior_bias: bool = True
    sparse_grad: bool = False
    backend: str = "auto"
    train_after_parent: bool = False
    uncertainty_weights: bool = False

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise bad("embed_dim", "a positive int", self.embed_dim)
        if not self.init_std >= 0:
            raise bad("init_std", "at least 0", self.init_std)
        for name in ("task_weights", "positive_weights"):
            weights = getattr(self, name)
            if weights is not None and not all(w >= 0 for w in weights):
                raise bad(name, "weights of at least 0", list(weights))

    @classmethod
    def from_dict(cls: type[C], data: Mapping[str, Any], where: str = "config") -> C:
        """From plain values, as YAML gives them; errors name the field by its path."""
        return from_mapping(cls, data, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the inverse of :meth:`from_dict`."""
        return to_mapping(self)


class FieldModel(Constants, ABC):
    """Embeds the sparse fields; a subclass makes logits of them. Histories are not read.

    Args:
        spec: sizes of the data, :class:`mtlfast.data.DatasetSpec` or :class:`Sizes`.
        config: options.
        backend: overrides ``config.backend``.
    """

    task_weights: Tensor | None
    positive_weights: Tensor | None

    def __init__(
        self,
        spec: DataSpec,
        config: FieldModelConfig,
        backend: str | InterestFunction | None = None,
    ) -> None:
        super().__init__()
        self.num_tasks = len(spec.task_parents)
        self.num_fields = len(spec.vocab_sizes)
        self.parents = tuple(spec.task_parents)
        self.train_after_parent = config.train_after_parent
        self.prior_rates = _rates_after(spec) if self.train_after_parent else spec.positive_rates
        """Share of positives among the samples that each task learns from; empty when unknown."""
        self.embedding = FieldEmbedding(
            spec.vocab_sizes,
            config.embed_dim,
            sparse_grad=config.sparse_grad,
            init_std=config.init_std,
            multi_valued=tuple(spec.multi_valued),
        )
        self.input_dim = self.num_fields * config.embed_dim
        self.field_sizes = FieldSizes(
            config.embed_dim,
            tuple(spec.vocab_sizes),
            backend=backend if isinstance(backend, str) else config.backend,
        )
        for name in ("task_weights", "positive_weights"):
            weights = getattr(config, name)
            if weights is not None and len(weights) != self.num_tasks:
                raise bad(name, f"{self.num_tasks} weights", len(weights))
            self.register_constant(
                name, None if weights is None else functools.partial(torch.tensor, weights)
            )
        self.log_variances = (
            nn.Parameter(torch.zeros(self.num_tasks)) if config.uncertainty_weights else None
        )

    def forward(
        self,
        sparse: Tensor,
        sequences: JaggedSequences | None = None,
        user_index: Tensor | None = None,
        bags: FieldBags | None = None,
    ) -> Tensor:
        """Logits ``[B, T]``.

        Args:
            sparse: int64 ids ``[B, F]``.
            sequences, user_index: not read; every model takes a batch in the same way.
            bags: all ids of the multi-valued fields; None in data without. What hashes ids instead
                of embedding them (MemoNet) reads ``sparse`` there as well.
        """
        return self.logits(self.embedding(sparse, bags), sparse)

    @abstractmethod
    def logits(self, fields: Tensor, ids: Tensor) -> Tensor:
        """Logits ``[B, T]`` from embeddings ``[B, F, d]`` and their ids ``[B, F]``."""

    def extra_loss(self, logits: Tensor, labels: Tensor | None = None) -> Tensor | None:
        """What the model adds to the loss of the tasks."""
        return None

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted sum of the tasks' mean binary cross-entropies, plus the model's own term."""
        counted = self._after_parents(labels) if self.train_after_parent else None
        losses = task_losses(logits, labels, self.positive_weights, counted)
        loss = weighted_sum(losses, self.task_weights, self.log_variances)
        extra = self.extra_loss(logits, labels)
        return loss if extra is None else loss + extra

    def _after_parents(self, labels: Tensor) -> Tensor:
        """Bool ``[B, T]``: whether a sample is positive for the task that each one follows."""
        everyone = torch.ones_like(labels[:, 0], dtype=torch.bool)
        columns = [everyone if p is None else labels[:, p] > 0.5 for p in self.parents]
        return torch.stack(columns, dim=1)


def _rates_after(spec: DataSpec) -> Sequence[float]:
    rates = spec.positive_rates
    return [
        rate if parent is None or not rates[parent] else min(rate / rates[parent], 1.0)
        for rate, parent in zip(rates, spec.task_parents, strict=False)
    ]
