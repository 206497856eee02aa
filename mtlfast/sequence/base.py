"""What all encoders of behavior sequences have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences, of_users

__all__ = ["SequenceEncoder", "padded"]


class SequenceEncoder(nn.Module, ABC):
    """One vector ``[B, output_dim]`` per candidate from its user's behavior sequences.

    Attributes:
        embed_dim: ``d`` of tokens and candidates.
        output_dim: width of the result.
    """

    def __init__(self, embed_dim: int, output_dim: int) -> None:
        super().__init__()
        if embed_dim < 1:
            raise bad("embed_dim", "a positive int", embed_dim)
        self.embed_dim = embed_dim
        self.output_dim = output_dim

    def forward(
        self, sequences: JaggedSequences, target: Tensor, *, user_index: Tensor | None = None
    ) -> Tensor:
        """``[B, output_dim]``.

        Args:
            sequences: embeddings ``[N, d]`` of the tokens of ``M`` behaviors of ``U`` users.
            target: embeddings ``[B, d]`` of the candidates.
            user_index: int64 ``[B]``, whose sequences each candidate uses; None when ``U == B``.

        Raises:
            ValueError: candidates and users that differ in number, or shapes that the encoder was
                not made for.
        """
        if user_index is not None:
            sequences = of_users(sequences, user_index)
        if sequences.num_users != target.shape[0]:
            raise bad("sequences", f"{target.shape[0]} users", sequences.num_users)
        return self.encode(sequences, target)

    def extra_loss(self) -> Tensor | None:
        """What this encoder adds to the loss of the tasks, for the last forward pass.

        None for most, and always in eval mode.
        """
        return None

    @abstractmethod
    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        """:meth:`forward` with sequences for every candidate."""


def padded(sequences: JaggedSequences, behavior: int) -> tuple[Tensor, Tensor]:
    """The tokens ``[B, L, d]`` of one behavior and which of them are real, bool ``[B, L]``.

    ``L`` is the longest sequence where that can be read without a sync, and at least 1.
    """
    part = sequences.behavior(behavior)
    lengths = part.lengths()[0]
    longest = part.max_len
    if lengths.device.type == "cpu" and len(lengths):
        longest = int(lengths.max())
    (tokens,), _ = part.to_padded(widths=[max(longest, 1)])
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens, columns < lengths[:, None]
