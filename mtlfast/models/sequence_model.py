"""The models that DTRN is compared with: a sequence encoder, then a multi-task head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mtlfast._checks import check_units
from mtlfast._config import from_mapping, to_mapping
from mtlfast.errors import bad
from mtlfast.heads import HeadConfig, MMoEConfig
from mtlfast.jagged import JaggedSequences
from mtlfast.models.history_model import HistoryModel
from mtlfast.models.spec import DataSpec, Sizes
from mtlfast.nn import InterestFunction
from mtlfast.sequence import DINConfig, EncoderConfig


@dataclass(frozen=True)
class SequenceModelConfig:
    """Options of :class:`SequenceModel`.

    Args:
        embed_dim: embedding width ``d`` of every field and token.
        encoder: options of the sequence encoder; in YAML its name, or a mapping with ``name``:
            youtubenet, din, dien and bst read one behavior (``behavior``, the first by default),
            atrank, dfn and dmt all of them.
        head: options of the multi-task head; in YAML its name, or a mapping with ``name``.
        share_item_table: target item and sequences share one embedding table.
        init_std: standard deviation of the initial embeddings.
        task_weights: weight of each task's loss; 1 each when None.
        prior_bias: start the output biases at the log-odds of the data's positive rates.
        sparse_grad: sparse gradient of the embedding table.
        bias_fields: numbers or names of fields, such as the position on the page, that explain a
            label but are not known when the model serves. A tower of their own reads them, and the
            rest of the model does not; its output is added to every task's logit in training and
            left out afterwards (DMT, Gu et al., CIKM 2020). M2M's ``scenario_fields`` count the
            fields that are left.
        bias_units: hidden widths of that tower.
        uncertainty_weights: learn how much each task's loss counts, on top of ``task_weights``
            (Kendall et al., CVPR 2018).

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
    bias_fields: tuple[int | str, ...] = ()
    bias_units: tuple[int, ...] = (32, 16)
    uncertainty_weights: bool = False

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
        check_units("bias_units", self.bias_units, allow_empty=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config") -> SequenceModelConfig:
        """From plain values, as YAML gives them; errors name the field by its path."""
        return from_mapping(cls, data, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the inverse of :meth:`from_dict`."""
        return to_mapping(self)


class SequenceModel(HistoryModel):
    """``head(flatten(E) || encoder(sequences, item))``, the rows of DTRN's Table 4 (CIKM 2023).

    Submodules: ``embedding``, ``encoder``, ``head``, ``bias_tower`` (or None).

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
        biases = _numbers(config.bias_fields, spec)
        kept = [f for f in range(len(spec.vocab_sizes)) if f not in biases]
        self.bias_tower: nn.Module | None = None
        if biases:
            self.register_constant("_kept", lambda: torch.tensor(kept))
            self.register_constant("_biases", lambda: torch.tensor(biases))
            widths = [len(biases) * d, *config.bias_units]
            hidden = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
            self.bias_tower = nn.Sequential(*chain(*hidden), nn.Linear(widths[-1], 1))
            # The head reads the other fields alone.
            spec = Sizes(
                tuple(spec.vocab_sizes[f] for f in kept),
                None if spec.item_field is None else kept.index(spec.item_field),
                tuple(spec.max_lengths),
                tuple(spec.task_parents),
                tuple(spec.positive_rates),
            )
        self.build_head(spec, config, len(kept) * d + self.encoder.output_dim)

    def forward(
        self, sparse: Tensor, sequences: JaggedSequences, user_index: Tensor | None = None
    ) -> Tensor:
        """Logits ``[B, T]``; in training with the bias tower's output, where there is one.

        Args:
            sparse: int64 ids ``[B, F]``.
            sequences: int64 item ids ``[N]`` of the ``M`` behaviors of ``U`` users.
            user_index: int64 ``[B]``, whose sequences each candidate uses; None when ``U == B``.
        """
        fields, target, tokens = self.embedding(sparse, sequences)
        interest = self.encoder(tokens, target, user_index=user_index)
        own = fields if self.bias_tower is None else fields.index_select(1, self._kept)
        logits: Tensor = self.head(torch.cat((own.flatten(1), interest), dim=1))
        if self.bias_tower is None or not self.training:
            return logits
        bias: Tensor = self.bias_tower(fields.index_select(1, self._biases).flatten(1))
        return logits + bias

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As of every :class:`HistoryModel`, plus the encoder's own term, such as DIEN's."""
        loss, extra = super().loss(logits, labels), self.encoder.extra_loss()
        return loss if extra is None else loss + extra


def _numbers(asked: Sequence[int | str], spec: DataSpec) -> list[int]:
    """The fields' numbers, ascending; never the target item's."""
    names: Sequence[str] = getattr(spec, "fields", ())
    count = len(spec.vocab_sizes)
    found = []
    for field_ in asked:
        number = names.index(field_) if field_ in names else field_
        if not isinstance(number, int) or not 0 <= number < count or number == spec.item_field:
            known = f"fields in [0, {count})" + (f", or of {', '.join(names)}," if names else "")
            raise bad("bias_fields", f"{known} other than the item's", repr(field_))
        found.append(number)
    if len(set(found)) != len(found):
        raise bad("bias_fields", "different fields", list(asked))
    return sorted(found)
