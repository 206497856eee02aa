"""DTRN, the deep task-specific bottom representation network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlfast._config import from_mapping, to_mapping
from mtlfast.errors import bad
from mtlfast.heads import HeadConfig, MMoEConfig
from mtlfast.jagged import JaggedSequences
from mtlfast.models.history_model import HistoryModel
from mtlfast.models.spec import DataSpec
from mtlfast.nn import (
    InjectedTransformer,
    SeparateTransformers,
    TaskSpecificInterest,
    TaskSpecificRefinement,
)
from mtlfast.nn.conditional_transformer import EmptyRule, InterestFunction
from mtlfast.sequence import JaggedPositionEncoding, PositionKind


@dataclass(frozen=True)
class DTRNConfig:
    """Options of :class:`DTRN`; sizes that the data decide are not among them.

    Args:
        embed_dim: embedding width ``d`` of every field, token, task and behavior.
        num_heads: attention heads, a divisor of ``embed_dim``.
        ffn_dim: hidden width of the feed-forward networks; ``4 * embed_dim`` when None.
        hyper_dim: hidden width of the hypernetwork; ``embed_dim`` when None.
        eps: added to the variance inside the root of every layer norm.
        share_enc_dec: encoder and decoder share their weights.
        empty: what an empty sequence gives, see :class:`ConditionalTransformer`.
        pos_encoding: ``"none"``, ``"learned"`` or ``"sinusoidal"``, added to the tokens.
        share_item_table: target item and sequences share one embedding table.
        init_std: standard deviation of the initial embeddings.
        refinement: with TRM; without it the heads read the raw representations.
        refinement_dim: hidden width of TRM; ``D // 4`` when None.
        head: options of the multi-task head; in YAML its name, or a mapping with ``name``.
        task_weights: weight of each task's loss; 1 each when None.
        prior_bias: start the output biases at the log-odds of the data's positive rates.
        sparse_grad: sparse gradient of the embedding table.
        backend: implementation of the fused ops.
        interests: "conditional" (TIM), or "separate" for DMT's: a transformer per behavior, and
            interests that all tasks share. With ``refinement=False`` that is DMT under any head.
        injection: how task and behavior enter the transformer of TIM: "norm" (DTRN), or "qkv",
            "ffn1", "ffn2" as in the paper's Table 6, see :class:`mtlfast.nn.InjectedTransformer`.
        inject_where: "both", "encoder" or "decoder", for injections other than "norm".
        share_positions: one hypernetwork for all layer norms; the paper (Eq. 2) has one for each.
        scale_embeddings: multiply what the transformer reads, tokens and target item, by
            ``sqrt(embed_dim)``, as DMT's authors do before they add positions.
        token_dropout: probability of dropout on the same, behind the positions.
        num_encoder_layers: of the conditional transformer; the paper shows one, and what is more
            is not fused.
        uncertainty_weights: learn how much each task's loss counts, on top of ``task_weights``
            (Kendall et al., CVPR 2018).

    Raises:
        ValueError: naming the field.
    """

    embed_dim: int = 32
    num_heads: int = 2
    ffn_dim: int | None = None
    hyper_dim: int | None = None
    eps: float = 1e-5
    share_enc_dec: bool = False
    empty: EmptyRule = "no_attention"
    pos_encoding: PositionKind = "none"
    share_item_table: bool = True
    init_std: float = 0.01
    refinement: bool = True
    refinement_dim: int | None = None
    head: HeadConfig = field(default_factory=MMoEConfig)
    task_weights: tuple[float, ...] | None = None
    prior_bias: bool = True
    sparse_grad: bool = False
    backend: str = "auto"
    interests: Literal["conditional", "separate"] = "conditional"
    injection: Literal["norm", "qkv", "ffn1", "ffn2"] = "norm"
    inject_where: Literal["both", "encoder", "decoder"] = "both"
    share_positions: bool = False
    scale_embeddings: bool = False
    token_dropout: float = 0.0
    num_encoder_layers: int = 1
    uncertainty_weights: bool = False

    def __post_init__(self) -> None:
        for name in (
            *("embed_dim", "num_heads", "ffn_dim", "hyper_dim", "refinement_dim"),
            "num_encoder_layers",
        ):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise bad(name, "a positive int", size)
        if self.embed_dim % self.num_heads:
            raise bad("num_heads", f"a divisor of embed_dim = {self.embed_dim}", self.num_heads)
        if not self.eps > 0:
            raise bad("eps", "a positive float", self.eps)
        if not self.init_std >= 0:
            raise bad("init_std", "at least 0", self.init_std)
        if self.pos_encoding not in ("none", "learned", "sinusoidal"):
            raise bad("pos_encoding", "none, learned or sinusoidal", repr(self.pos_encoding))
        if self.empty not in ("no_attention", "zero_interest"):
            raise bad("empty", "no_attention or zero_interest", repr(self.empty))
        if self.interests not in ("conditional", "separate"):
            raise bad("interests", "conditional or separate", repr(self.interests))
        if self.injection not in ("norm", "qkv", "ffn1", "ffn2"):
            raise bad("injection", "norm, qkv, ffn1 or ffn2", repr(self.injection))
        if self.inject_where not in ("both", "encoder", "decoder"):
            raise bad("inject_where", "both, encoder or decoder", repr(self.inject_where))
        if self.interests == "separate" and self.injection != "norm":
            raise bad("injection", "norm where interests are separate", repr(self.injection))
        if self.interests == "separate" or self.injection != "norm":
            if self.share_positions:
                raise bad("share_positions", "False without conditional layer norms", True)
            if self.num_encoder_layers > 1:
                expected = "1 without conditional layer norms"
                raise bad("num_encoder_layers", expected, self.num_encoder_layers)
        if not 0.0 <= self.token_dropout < 1.0:
            raise bad("token_dropout", "a probability in [0, 1)", self.token_dropout)
        if not isinstance(self.head, HeadConfig):
            raise bad("head", "a HeadConfig", type(self.head).__name__)
        if self.task_weights is not None and not all(w >= 0 for w in self.task_weights):
            raise bad("task_weights", "weights of at least 0", list(self.task_weights))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config") -> DTRNConfig:
        """From plain values, as YAML gives them; errors name the field by its path."""
        return from_mapping(cls, data, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the inverse of :meth:`from_dict`."""
        return to_mapping(self)


class DTRNOutput(NamedTuple):
    """What :meth:`DTRN.forward` returns when a hook is asked for; the rest is None."""

    logits: Tensor
    """``[B, T]``."""
    interests: Tensor | None = None
    """``[B, T, M, d]``."""
    raw: Tensor | None = None
    """``[B, T, D]``, the sparse fields and the task's interests."""
    refined: Tensor | None = None
    """``[B, T, D]``, what the head reads."""
    task_repr: Tensor | None = None
    """``[B, T, W]``, what the towers read."""


class DTRN(HistoryModel):
    """Task-specific interests, task-specific refinement and a multi-task head (CIKM 2023).

    Submodules: ``embedding``, ``positions`` (or None), ``tim``, ``trm`` (or None), ``head``.

    Args:
        spec: sizes of the data, :class:`mtlfast.data.DatasetSpec` or :class:`Sizes`.
        config: options; the defaults when None.
        backend: overrides ``config.backend``; also a function, see
            :data:`mtlfast.nn.InterestFunction`.
    """

    def __init__(
        self,
        spec: DataSpec,
        config: DTRNConfig | None = None,
        *,
        backend: str | InterestFunction | None = None,
    ) -> None:
        config = DTRNConfig() if config is None else config
        super().__init__(spec, config)
        d = config.embed_dim
        self.config = config
        self.positions = (
            None
            if config.pos_encoding == "none"
            else JaggedPositionEncoding(
                config.pos_encoding, self.num_behaviors, max(spec.max_lengths), d
            )
        )
        self.tim = _interest_module(
            config,
            self.num_tasks,
            self.num_behaviors,
            config.backend if backend is None else backend,
        )
        sparse_dim = len(spec.vocab_sizes) * d
        self.trm = (
            TaskSpecificRefinement(
                self.num_tasks, sparse_dim, self.tim.output_dim, hidden_dim=config.refinement_dim
            )
            if config.refinement
            else None
        )
        self.build_head(spec, config, sparse_dim + self.tim.output_dim)

    @overload
    def forward(
        self,
        sparse: Tensor,
        sequences: JaggedSequences,
        user_index: Tensor | None = None,
        *,
        return_interests: Literal[False] = False,
        return_bottom: Literal[False] = False,
        return_task_repr: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        sparse: Tensor,
        sequences: JaggedSequences,
        user_index: Tensor | None = None,
        *,
        return_interests: bool = False,
        return_bottom: bool = False,
        return_task_repr: bool = False,
    ) -> Tensor | DTRNOutput: ...

    def forward(
        self,
        sparse: Tensor,
        sequences: JaggedSequences,
        user_index: Tensor | None = None,
        *,
        return_interests: bool = False,
        return_bottom: bool = False,
        return_task_repr: bool = False,
    ) -> Tensor | DTRNOutput:
        """Logits ``[B, T]``, or a :class:`DTRNOutput` when any ``return_`` option is set.

        Args:
            sparse: int64 ids ``[B, F]``.
            sequences: int64 item ids ``[N]`` of the ``M`` behaviors of ``U`` users.
            user_index: int64 ``[B]``, whose sequences each candidate uses; None when ``U == B``.
            return_interests: fill ``interests``.
            return_bottom: fill ``raw`` and ``refined``.
            return_task_repr: fill ``task_repr``.
        """
        fields, target, tokens = self.embedding(sparse, sequences)
        if self.config.scale_embeddings:
            scale = self.config.embed_dim**0.5
            target, tokens = scale * target, tokens.with_values(scale * tokens.values)
        if self.positions is not None:
            tokens = self.positions(tokens)
        if self.config.token_dropout and self.training:
            p = self.config.token_dropout
            target, tokens = F.dropout(target, p), tokens.with_values(F.dropout(tokens.values, p))
        interest = self.tim(tokens, target, user_index=user_index)  # [B, T, M*d]
        raw = None
        if self.trm is None:
            raw = bottom = _raw(fields, interest)
        elif return_bottom:
            raw, bottom = self.trm(fields, interest, return_raw=True)
        else:
            bottom = self.trm(fields, interest)
        task_repr = None
        if return_task_repr:
            logits, task_repr = self.head(bottom, return_task_repr=True)
        else:
            logits = self.head(bottom)
        if not (return_interests or return_bottom or return_task_repr):
            return logits
        return DTRNOutput(
            logits,
            interest.unflatten(2, (self.num_behaviors, -1)) if return_interests else None,
            raw if return_bottom else None,
            bottom if return_bottom else None,
            task_repr,
        )


def _interest_module(
    config: DTRNConfig, num_tasks: int, num_behaviors: int, backend: str | InterestFunction
) -> TaskSpecificInterest | SeparateTransformers | InjectedTransformer:
    """TIM, or what the paper compares it with."""
    d = config.embed_dim
    ffn_dim = 4 * d if config.ffn_dim is None else config.ffn_dim
    sizes = (d, config.num_heads, ffn_dim, num_tasks, num_behaviors)
    if config.interests == "separate":
        return SeparateTransformers(
            *sizes,
            eps=config.eps,
            backend=backend,
            empty=config.empty,
            share_enc_dec=config.share_enc_dec,
        )
    if config.injection != "norm":
        return InjectedTransformer(
            *sizes,
            injection=config.injection,
            where=config.inject_where,
            hyper_dim=config.hyper_dim,
            eps=config.eps,
            backend=backend,
            empty=config.empty,
            share_enc_dec=config.share_enc_dec,
        )
    return TaskSpecificInterest(
        *sizes,
        hyper_dim=config.hyper_dim,
        eps=config.eps,
        backend=backend,
        empty=config.empty,
        share_enc_dec=config.share_enc_dec,
        share_positions=config.share_positions,
        num_encoder_layers=config.num_encoder_layers,
    )


def _raw(fields: Tensor, interest: Tensor) -> Tensor:
    """``[B, T, D]``, task by task in memory as the heads like it."""
    num_tasks = interest.shape[1]
    sparse = fields.flatten(1).unsqueeze(0).expand(num_tasks, -1, -1)
    return torch.cat((sparse, interest.transpose(0, 1)), dim=-1).transpose(0, 1)
