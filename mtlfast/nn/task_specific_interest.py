"""TIM, the task-specific interest module of DTRN."""

from __future__ import annotations

from torch import Tensor, nn

from mtlfast.jagged import JaggedSequences
from mtlfast.nn.conditional_transformer import (
    ConditionalTransformer,
    EmptyRule,
    InterestFunction,
)


class TaskSpecificInterest(nn.Module):
    """A conditional transformer whose interests are joined per task, DTRN (CIKM 2023) Eq. 8.

    The arguments are those of :class:`ConditionalTransformer`, which is the only submodule
    (``transformer``).
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
        self.transformer = ConditionalTransformer(
            embed_dim,
            num_heads,
            ffn_dim,
            num_tasks,
            num_behaviors,
            hyper_dim=hyper_dim,
            eps=eps,
            backend=backend,
            empty=empty,
            share_enc_dec=share_enc_dec,
            share_positions=share_positions,
            num_encoder_layers=num_encoder_layers,
        )

    @property
    def output_dim(self) -> int:
        """``M * d``."""
        return self.transformer.num_behaviors * self.transformer.embed_dim

    def forward(
        self,
        sequences: JaggedSequences,
        target: Tensor,
        *,
        user_index: Tensor | None = None,
        tables: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``[B, T, M*d]``, behavior-major in the last axis; arguments as the transformer's."""
        interests = self.transformer(sequences, target, user_index=user_index, tables=tables)
        return interests.flatten(2)
