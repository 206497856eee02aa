"""The models that DTRN is compared with: a sequence encoder, then a multi-task head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtlfast._config import from_mapping, to_mapping
from mtlfast.errors import bad
from mtlfast.heads import HeadConfig, MMoEConfig
from mtlfast.jagged import JaggedSequences
from mtlfast.models.history_model import HistoryModel
from mtlfast.models.spec import DataSpec
from mtlfast.nn import InterestFunction
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


class SequenceModel(HistoryModel):
    """``head(flatten(E) || encoder(sequences, item))``, the rows of DTRN's Table 4 (CIKM 2023).

    Submodules: ``embedding``, ``encoder``, ``head``.

    Args:
        spec: sizes of the data, :class:`mtlfast.data.DatasetSpec` or :class:`Sizes`.
        config: options; the defaults when None.
        backend: not read; every model is built in the same way.
    """

    def __init__(
        self,
        spec: DataSpec,
        config: SequenceModelConfig | None = None,
        *,
        backend: str | InterestFunction | None = None,
    ) -> None:
        config = SequenceModelConfig() if config is None else config
        super().__init__(spec, config)
        d = config.embed_dim
        self.config = config
        self.encoder = config.encoder.build(d, spec.max_lengths, getattr(spec, "behaviors", ()))
        self.build_head(spec, config, len(spec.vocab_sizes) * d + self.encoder.output_dim)

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
        """As of every :class:`HistoryModel`, plus the encoder's own term, such as DIEN's."""
        loss, extra = super().loss(logits, labels), self.encoder.extra_loss()
        return loss if extra is None else loss + extra
