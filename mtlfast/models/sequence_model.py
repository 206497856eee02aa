"""The models that DTRN is compared with: a sequence encoder, then a multi-task head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mtlfast._config import from_mapping, to_mapping
from mtlfast.errors import bad
from mtlfast.heads import HeadConfig, MMoEConfig
from mtlfast.jagged import JaggedSequences
from mtlfast.models.loss import task_losses
from mtlfast.models.spec import DataSpec
from mtlfast.nn import FeatureEmbedding, InterestFunction
from mtlfast.sequence import DINConfig, EncoderConfig


@dataclass(frozen=True)
class SequenceModelConfig:
    """Options of :class:`SequenceModel`.

    Args:
        embed_dim: embedding width ``d`` of every field and token.
        encoder: options of the sequence encoder; in YAML its name, or a mapping with ``name``:
            youtubenet, din, dien and bst read one behavior (``behavior``, the first by default),
            atrank and dfn all of them.
        head: options of the multi-task head; in YAML its name, or a mapping with ``name``.
        share_item_table: target item and sequences share one embedding table.
        init_std: standard deviation of the initial embeddings.
        task_weights: weight of each task's loss; 1 each when None.
        prior_bias: start the output biases at the log-odds of the data's positive rates.
        sparse_grad: sparse gradient of the embedding table.

    Raises:
        ValueError: naming the field.
    """

    embed_dim: int = 32
    encoder: EncoderConfig = field(default_factory=DINConfig)
    head: HeadConfig = field(default_factory=MMoEConfig)
    share_item_table: bool = True
    init_std: float = 0.01
    task_weights: tuple[float, ...] | None = None
    prior_bias: bool = True
    sparse_grad: bool = False

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise bad("embed_dim", "a positive int", self.embed_dim)
        if not self.init_std >= 0:
            raise bad("init_std", "at least 0", self.init_std)
        if not isinstance(self.encoder, EncoderConfig):
            raise bad("encoder", "an EncoderConfig", type(self.encoder).__name__)
        if not isinstance(self.head, HeadConfig):
            raise bad("head", "a HeadConfig", type(self.head).__name__)
        if self.task_weights is not None and not all(w >= 0 for w in self.task_weights):
            raise bad("task_weights", "weights of at least 0", list(self.task_weights))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config") -> SequenceModelConfig:
        """From plain values, as YAML gives them; errors name the field by its path."""
        return from_mapping(cls, data, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the inverse of :meth:`from_dict`."""
        return to_mapping(self)


class SequenceModel(nn.Module):
    """``head(flatten(E) || encoder(sequences, item))``, the rows of DTRN's Table 4 (CIKM 2023).

    Submodules: ``embedding``, ``encoder``, ``head``.

    Args:
        spec: sizes of the data, :class:`mtlfast.data.DatasetSpec` or :class:`Sizes`.
        config: options; the defaults when None.
        backend: not read; every model is built in the same way.
    """

    task_weights: Tensor | None

    def __init__(
        self,
        spec: DataSpec,
        config: SequenceModelConfig | None = None,
        *,
        backend: str | InterestFunction | None = None,
    ) -> None:
        super().__init__()
        config = SequenceModelConfig() if config is None else config
        num_tasks, num_behaviors = len(spec.task_parents), len(spec.max_lengths)
        if spec.item_field is None or not num_behaviors:
            raise bad("spec", "data with an item field and at least one behavior", "data without")
        if spec.multi_valued:
            raise bad("spec", "fields with one id per row", "multi-valued ones")
        if config.task_weights is not None and len(config.task_weights) != num_tasks:
            raise bad("task_weights", f"{num_tasks} weights", len(config.task_weights))
        d = config.embed_dim
        self.config = config
        self.num_tasks = num_tasks
        self.num_behaviors = num_behaviors
        self.embedding = FeatureEmbedding(
            spec.vocab_sizes,
            d,
            item_field=spec.item_field,
            num_behaviors=num_behaviors,
            share_item_table=config.share_item_table,
            sparse_grad=config.sparse_grad,
            init_std=config.init_std,
        )
        self.encoder = config.encoder.build(d, spec.max_lengths, getattr(spec, "behaviors", ()))
        head = config.head.on_fields(d, spec.vocab_sizes, spec.item_field)
        width = len(spec.vocab_sizes) * d + self.encoder.output_dim
        self.head = head.build(width, num_tasks, spec.task_parents)
        if config.prior_bias and len(spec.positive_rates):
            self.head.set_prior(spec.positive_rates)
        weights = None if config.task_weights is None else torch.tensor(config.task_weights)
        self.register_buffer("task_weights", weights, persistent=False)

    def forward(
        self, sparse: Tensor, sequences: JaggedSequences, user_index: Tensor | None = None
    ) -> Tensor:
        """Logits ``[B, T]``.

        Args:
            sparse: int64 ids ``[B, F]``.
            sequences: int64 item ids ``[N]`` of the ``M`` behaviors of ``U`` users.
            user_index: int64 ``[B]``, whose sequences each candidate uses; None when ``U == B``.
        """
        fields, target, tokens = self.embedding(sparse, sequences)
        interest = self.encoder(tokens, target, user_index=user_index)
        logits: Tensor = self.head(torch.cat((fields.flatten(1), interest), dim=1))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted sum of the tasks' mean binary cross-entropies, plus the head's own term."""
        losses = task_losses(logits, labels)
        loss = losses.sum() if self.task_weights is None else losses @ self.task_weights
        extra = self.head.extra_loss(logits, labels)
        return loss if extra is None else loss + extra
