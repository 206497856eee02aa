"""One ordinary transformer per behavior: the interests of DMT, equal for all tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences, require_behaviors
from mtlfast.nn.conditional_transformer import (
    EmptyRule,
    InterestFunction,
    TransformerLayer,
    empty_as_zero,
)
from mtlfast.nn.hypernetwork import NUM_NORMS
from mtlfast.ops import ConditionalTransformerWeights, conditional_interest


class SeparateTransformers(nn.Module):
    """``M`` encoder-decoder transformers with weights of their own (DMT, Gu et al., CIKM 2020).

    What DTRN (CIKM 2023, Table 5) starts from: the same layers as its conditional transformer, but
    ordinary layer norms, separate weights per behavior, and interests that all tasks share.

    Args:
        embed_dim: embedding width ``d``.
        num_heads: attention heads, a divisor of ``embed_dim``.
        ffn_dim: hidden width of the feed-forward networks.
        num_tasks: ``T``, how often the interests are repeated.
        num_behaviors: ``M``.
        eps: added to the variance inside the root of every layer norm.
        backend: of :func:`mtlfast.ops.conditional_interest`, or a function in its place.
        empty: see :class:`ConditionalTransformer`.
        share_enc_dec: the decoders use the encoders' weights.

    Raises:
        ValueError: for sizes that are not positive, or heads that do not divide the width.

    Submodules: ``encoders``, ``decoders`` (``M`` each); parameters ``norm_weight [M, 4, d]``,
    ``norm_bias [M, 4, d]``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_tasks: int,
        num_behaviors: int,
        *,
        eps: float = 1e-5,
        backend: str | InterestFunction = "auto",
        empty: EmptyRule = "no_attention",
        share_enc_dec: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (
            ("embed_dim", embed_dim),
            ("num_heads", num_heads),
            ("ffn_dim", ffn_dim),
            ("num_tasks", num_tasks),
            ("num_behaviors", num_behaviors),
        ):
            check_count(name, size)
        if embed_dim % num_heads:
            raise bad("num_heads", f"a divisor of embed_dim = {embed_dim}", num_heads)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_tasks = num_tasks
        self.num_behaviors = num_behaviors
        self.eps = eps
        self.backend = backend
        self.empty = empty
        self.encoders = nn.ModuleList(
            TransformerLayer(embed_dim, ffn_dim) for _ in range(num_behaviors)
        )
        self.decoders = (
            self.encoders
            if share_enc_dec
            else nn.ModuleList(TransformerLayer(embed_dim, ffn_dim) for _ in range(num_behaviors))
        )
        self.norm_weight = nn.Parameter(torch.ones(num_behaviors, NUM_NORMS, embed_dim))
        self.norm_bias = nn.Parameter(torch.zeros(num_behaviors, NUM_NORMS, embed_dim))

    @property
    def output_dim(self) -> int:
        """``M * d``."""
        return self.num_behaviors * self.embed_dim

    def forward(
        self, sequences: JaggedSequences, target: Tensor, *, user_index: Tensor | None = None
    ) -> Tensor:
        """``[B, T, M*d]``, behavior-major, a view with the same interests for every task.

        Args:
            sequences: embeddings ``[N, d]`` of the tokens of ``M`` behaviors of ``U`` users.
            target: embeddings ``[B, d]`` of the candidates.
            user_index: int64 ``[B]``, whose sequences each candidate uses; None when ``U == B``.

        Raises:
            ValueError: for another number of behaviors than the module's, and for everything that
                :func:`mtlfast.ops.conditional_interest` refuses.
        """
        require_behaviors(sequences, self.num_behaviors)
        interests = []
        for b, (encoder, decoder) in enumerate(zip(self.encoders, self.decoders, strict=True)):
            if not (
                isinstance(encoder, TransformerLayer) and isinstance(decoder, TransformerLayer)
            ):
                raise TypeError("encoders and decoders must be TransformerLayer modules")
            interests.append(
                one_interest(
                    sequences.behavior(b),
                    target,
                    ConditionalTransformerWeights(encoder.weights(), decoder.weights()),
                    self.norm_weight[b],
                    self.norm_bias[b],
                    num_heads=self.num_heads,
                    eps=self.eps,
                    user_index=user_index,
                    backend=self.backend,
                )
            )
        found = torch.stack(interests, dim=1).unsqueeze(1)  # [B, 1, M, d]
        if self.empty == "zero_interest":
            found = empty_as_zero(found, sequences, user_index)
        return found.flatten(2).expand(-1, self.num_tasks, -1)


def one_interest(
    sequences: JaggedSequences,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    num_heads: int,
    eps: float,
    user_index: Tensor | None,
    backend: str | InterestFunction,
) -> Tensor:
    """``[B, d]``: the transformer on one behavior with ordinary layer norms ``[4, d]``."""
    tables = norm_weight[None, None], norm_bias[None, None]
    if callable(backend):
        out = backend(
            sequences, target, weights, *tables, num_heads=num_heads, eps=eps, user_index=user_index
        )
    else:
        out = conditional_interest(
            sequences,
            target,
            weights,
            *tables,
            num_heads=num_heads,
            eps=eps,
            user_index=user_index,
            backend=backend,
        )
    return out[:, 0, 0]
