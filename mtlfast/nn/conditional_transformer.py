"""The conditional transformer: one set of weights, one interest per task and behavior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.dtypes import without_autocast
from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences, require_behaviors
from mtlfast.nn.conditional_encoder import ConditionalEncoder
from mtlfast.nn.hypernetwork import NUM_NORMS, LayerNormHypernetwork
from mtlfast.nn.transformer_layer import TransformerLayer
from mtlfast.ops import ConditionalTransformerWeights, conditional_interest

__all__ = [
    "ConditionalTransformer",
    "EmptyRule",
    "InterestFunction",
    "TransformerLayer",
    "empty_as_zero",
]

InterestFunction = Callable[..., Tensor]
"""A stand-in for :func:`mtlfast.ops.conditional_interest`, called as
``fn(sequences, target, weights, scale, shift, num_heads=, eps=, user_index=)``."""

EmptyRule = Literal["no_attention", "zero_interest"]


class ConditionalTransformer(nn.Module):
    """Interests of every task in every behavior sequence, DTRN (CIKM 2023) Eq. 2-8.

    One encoder layer over each behavior sequence and one decoder layer with the target item as
    the query. All ``T x M`` pairs of task and behavior share the weights; they differ in the
    scales and shifts of the four layer norms, which a hypernetwork writes from the embeddings of
    the task and the behavior (Eq. 2 and 6). At the start these are exactly those of an ordinary
    layer norm.

    Args:
        embed_dim: embedding width ``d``.
        num_heads: attention heads ``h``; divides ``embed_dim``.
        ffn_dim: hidden width of both feed-forward networks.
        num_tasks: ``T``.
        num_behaviors: ``M``.
        hyper_dim: hidden width ``u`` of the hypernetwork; ``embed_dim`` when None.
        eps: added to the variance inside the root of every layer norm.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"``, or a function with the
            signature of :data:`InterestFunction` that computes the same thing another way
            (benchmarks and experiments). It is no part of the checkpoint.
        empty: what an empty sequence gives. ``"no_attention"``: the attention term is zero and
            the rest of the decoder runs on the target. ``"zero_interest"``: the whole interest
            is zero.
        share_enc_dec: the decoder uses the encoder's weights (``state_dict`` keeps both names).
        share_positions: one hypernetwork for all four layer norms; the paper's (Eq. 2) has one for
            each.
        num_encoder_layers: with more than the paper's one, those in front are a
            :class:`ConditionalEncoder` (``front``), not fused, and the op runs once per task.

    Raises:
        ValueError: for sizes that are not positive, heads that do not divide the width, or an
            unknown option.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_tasks: int,
        num_behaviors: int,
        *,
        hyper_dim: int | None = None,
        eps: float = 1e-5,
        backend: str | InterestFunction = "auto",
        empty: EmptyRule = "no_attention",
        share_enc_dec: bool = False,
        share_positions: bool = False,
        num_encoder_layers: int = 1,
    ) -> None:
        super().__init__()
        hyper_dim = embed_dim if hyper_dim is None else hyper_dim
        for name, size in (
            ("embed_dim", embed_dim),
            ("num_heads", num_heads),
            ("ffn_dim", ffn_dim),
            ("num_tasks", num_tasks),
            ("num_behaviors", num_behaviors),
            ("hyper_dim", hyper_dim),
            ("num_encoder_layers", num_encoder_layers),
        ):
            check_count(name, size)
        if embed_dim % num_heads:
            raise bad("num_heads", f"a divisor of embed_dim = {embed_dim}", num_heads)
        if not eps > 0:
            raise bad("eps", "a positive float", eps)
        if empty not in ("no_attention", "zero_interest"):
            raise bad("empty", "'no_attention' or 'zero_interest'", repr(empty))

        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.num_tasks = num_tasks
        self.num_behaviors = num_behaviors
        self.hyper_dim = hyper_dim
        self.eps = eps
        self.backend = backend
        self.empty = empty

        self.task_embedding = nn.Embedding(num_tasks, embed_dim)
        self.behavior_embedding = nn.Embedding(num_behaviors, embed_dim)
        self.hypernetwork = LayerNormHypernetwork(
            2 * embed_dim, hyper_dim, embed_dim, share_positions=share_positions
        )
        self.norm_weight = nn.Parameter(torch.empty(NUM_NORMS, embed_dim))
        self.norm_bias = nn.Parameter(torch.empty(NUM_NORMS, embed_dim))
        self.encoder = TransformerLayer(embed_dim, ffn_dim)
        self.decoder = self.encoder if share_enc_dec else TransformerLayer(embed_dim, ffn_dim)
        self.front = (
            None
            if num_encoder_layers == 1
            else ConditionalEncoder(
                embed_dim,
                num_heads,
                ffn_dim,
                num_encoder_layers - 1,
                hyper_dim=hyper_dim,
                eps=eps,
                share_positions=share_positions,
            )
        )
        self._reset_own_parameters()

    def _reset_own_parameters(self) -> None:
        nn.init.normal_(self.task_embedding.weight, std=self.embed_dim**-0.5)
        nn.init.normal_(self.behavior_embedding.weight, std=self.embed_dim**-0.5)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)

    def reset_parameters(self) -> None:
        """Start again: identity layer norms, Xavier-uniform weights."""
        self.hypernetwork.reset_parameters()
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()
        if self.front is not None:
            self.front.reset_parameters()
        self._reset_own_parameters()

    def norm_tables(self) -> tuple[Tensor, Tensor]:
        """The effective layer-norm tables ``(scale, shift)``, each ``[T, M, 4, d]`` (Eq. 2, 6).

        They depend on no sample: a server may compute them once per checkpoint and hand them to
        :meth:`forward` as ``tables``. Autocast does not lower their precision.
        """
        with without_autocast(self.norm_weight.device):
            condition = self._condition()
            tables = self.hypernetwork(condition.flatten(0, 1))
            tables = tables.unflatten(2, condition.shape[:2]).permute(0, 2, 3, 1, 4)
            return tables[0] * self.norm_weight, tables[1] + self.norm_bias

    def _condition(self) -> Tensor:
        """``[T, M, 2 d]``: the embeddings of every task and behavior (Eq. 2)."""
        task, behavior = self.task_embedding.weight, self.behavior_embedding.weight
        return torch.cat(
            (
                task.unsqueeze(1).expand(-1, self.num_behaviors, -1),
                behavior.unsqueeze(0).expand(self.num_tasks, -1, -1),
            ),
            dim=-1,
        )

    def weights(self) -> ConditionalTransformerWeights:
        """The encoder's and the decoder's parameters as the op takes them."""
        return ConditionalTransformerWeights(self.encoder.weights(), self.decoder.weights())

    def forward(
        self,
        sequences: JaggedSequences,
        target: Tensor,
        *,
        user_index: Tensor | None = None,
        tables: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Interests ``[B, T, M, d]``.

        Args:
            sequences: embeddings ``[N, d]`` of the tokens of ``M`` behaviors of ``U`` users.
            target: embeddings ``[B, d]`` of the candidates.
            user_index: int64 ``[B]``, whose sequences each candidate uses; None when ``U == B``.
            tables: what :meth:`norm_tables` gave, to spare its computation while serving.

        Raises:
            ValueError: for sequences of another width or number of behaviors than the module's,
                and for everything that :func:`mtlfast.ops.conditional_interest` refuses.
        """
        require_behaviors(sequences, self.num_behaviors)
        if target.dim() != 2 or target.shape[-1] != self.embed_dim:
            raise bad("target", f"shape [B, {self.embed_dim}]", f"shape {list(target.shape)}")
        scale, shift = self.norm_tables() if tables is None else tables
        if self.front is None:
            interests = self._interest(sequences, target, scale, shift, user_index)
        else:
            of_tasks = self.front(sequences, self._condition())
            found = []
            for t, tokens in enumerate(of_tasks):
                own, task = sequences.with_values(tokens), slice(t, t + 1)
                found.append(self._interest(own, target, scale[task], shift[task], user_index))
            interests = torch.cat(found, dim=1)
        if self.empty == "zero_interest":
            interests = empty_as_zero(interests, sequences, user_index)
        return interests

    def _interest(
        self,
        sequences: JaggedSequences,
        target: Tensor,
        scale: Tensor,
        shift: Tensor,
        user_index: Tensor | None,
    ) -> Tensor:
        """The one place where the op is called."""
        if callable(self.backend):
            return self.backend(
                sequences,
                target,
                self.weights(),
                scale,
                shift,
                num_heads=self.num_heads,
                eps=self.eps,
                user_index=user_index,
            )
        return conditional_interest(
            sequences,
            target,
            self.weights(),
            scale,
            shift,
            num_heads=self.num_heads,
            eps=self.eps,
            user_index=user_index,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        backend = self.backend if isinstance(self.backend, str) else repr(self.backend)
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, ffn_dim={self.ffn_dim}, "
            f"num_tasks={self.num_tasks}, num_behaviors={self.num_behaviors}, backend={backend}"
        )


def empty_as_zero(
    interests: Tensor, sequences: JaggedSequences, user_index: Tensor | None
) -> Tensor:
    """``interests [B, T, M, d]`` with zeros where a candidate's sequence is empty."""
    empty = sequences.lengths() == 0  # [M, U]
    if user_index is not None:
        empty = empty[:, user_index]
    return interests.masked_fill(empty.t()[:, None, :, None], 0.0)
