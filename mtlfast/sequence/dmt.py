"""DMT's transformers as its authors' code has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count, check_dropout
from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences
from mtlfast.sequence.attention import attend, check_heads
from mtlfast.sequence.base import SequenceEncoder, padded
from mtlfast.sequence.position import POSITION_KINDS, JaggedPositionEncoding, PositionKind

__all__ = ["DMT"]


class _Layer(nn.Module):
    """Attention without an output projection, then the feed-forward network; norms behind both."""

    def __init__(
        self, width: int, num_heads: int, ffn_dim: int, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(width, ffn_dim), nn.Linear(ffn_dim, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, memory: Tensor, real: Tensor) -> Tensor:
        """``x [B, Q, d]`` attends to the real ones of ``memory [B, L, d]``."""
        found = attend(
            self.query(x),
            self.key(memory),
            self.value(memory),
            real,
            self.num_heads,
            dropout=self.dropout if self.training else 0.0,
        )
        x = self.norm1(x + found)
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class DMT(SequenceEncoder):
    """An encoder-decoder transformer per behavior (Gu et al., CIKM 2020), as it was released.

    Embeddings are scaled by ``sqrt(d)``, positions are added to the tokens (not to the candidate),
    dropout follows; projections of queries, keys and values have biases, and there is no output
    projection. The candidate is the decoder's query; the result holds the ``M`` interests. Without
    any token its attention is zero. The code's width of 80 is that of four embeddings per item (id,
    category, brand, shop); here a token is its item's embedding.

    ``interests: separate`` of :class:`mtlfast.models.DTRN` is the other reading of DMT: the same
    layers as DTRN's, fused, which is what DTRN's ablations (CIKM 2023, Table 5) need.

    Args:
        embed_dim: ``d``.
        max_lengths: longest sequence of each of the ``M`` behaviors.
        num_heads: attention heads, a divisor of ``d``.
        ffn_dim: hidden width of the feed-forward networks; ``4 d`` when None.
        num_encoder_layers: of each behavior.
        num_decoder_layers: of each behavior.
        pos_encoding: "learned", "sinusoidal" or "none", from the oldest token on.
        scale: multiply embeddings by ``sqrt(d)``.
        dropout: probability on embeddings and attention weights.
        eps: added to the variance inside the root of every layer norm.
    """

    def __init__(
        self,
        embed_dim: int,
        max_lengths: Sequence[int],
        *,
        num_heads: int = 4,
        ffn_dim: int | None = None,
        num_encoder_layers: int = 1,
        num_decoder_layers: int = 1,
        pos_encoding: PositionKind = "learned",
        scale: bool = True,
        dropout: float = 0.1,
        eps: float = 1e-8,
    ) -> None:
        num_behaviors = len(max_lengths)
        super().__init__(embed_dim, num_behaviors * embed_dim)
        check_heads(embed_dim, num_heads)
        for name, count in (
            ("num_behaviors", num_behaviors),
            ("num_encoder_layers", num_encoder_layers),
            ("num_decoder_layers", num_decoder_layers),
        ):
            check_count(name, count)
        check_dropout(dropout)
        if pos_encoding not in POSITION_KINDS:
            raise bad("pos_encoding", "none, learned or sinusoidal", repr(pos_encoding))
        self.scale = embed_dim**0.5 if scale else 1.0
        self.positions = (
            None
            if pos_encoding == "none"
            else JaggedPositionEncoding(pos_encoding, num_behaviors, max(max_lengths), embed_dim)
        )
        self.dropout = nn.Dropout(dropout)
        ffn_dim = 4 * embed_dim if ffn_dim is None else ffn_dim

        def stacks(count: int) -> nn.ModuleList:
            sizes = (embed_dim, num_heads, ffn_dim, dropout, eps)
            return nn.ModuleList(
                nn.ModuleList(_Layer(*sizes) for _ in range(count)) for _ in range(num_behaviors)
            )

        self.encoders, self.decoders = stacks(num_encoder_layers), stacks(num_decoder_layers)

    def encode(self, sequences: JaggedSequences, target: Tensor) -> Tensor:
        if sequences.num_behaviors != len(self.encoders):
            raise bad("sequences", f"{len(self.encoders)} behaviors", sequences.num_behaviors)
        sequences = sequences.with_values(self.scale * sequences.values)
        if self.positions is not None:
            sequences = self.positions(sequences)
        sequences = sequences.with_values(self.dropout(sequences.values))
        found = []
        for b, (encoder, decoder) in enumerate(zip(self.encoders, self.decoders, strict=True)):
            tokens, real = padded(sequences, b)
            for layer in _layers(encoder):
                tokens = layer(tokens, tokens, real)
            # Each transformer has a dropout of its own on the candidate.
            interest = self.dropout(self.scale * target).unsqueeze(1)
            for layer in _layers(decoder):
                interest = layer(interest, tokens, real)
            found.append(interest.squeeze(1))
        return torch.cat(found, dim=1)


def _layers(stack: nn.Module) -> list[nn.Module]:
    return list(stack.children())
