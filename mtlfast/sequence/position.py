"""Position encodings of ragged sequences."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences
from mtlfast.nn.constants import Constants

PositionKind = Literal["none", "learned", "sinusoidal"]
POSITION_KINDS: tuple[PositionKind, ...] = ("none", "learned", "sinusoidal")


class JaggedPositionEncoding(Constants):
    """Adds a vector that depends on the place in the sequence, counted from the oldest token.

    DTRN (CIKM 2023) uses none; without one every interest is invariant to the order of a
    sequence.

    Args:
        kind: ``"learned"`` (one table ``weight [M, max_length, d]``) or ``"sinusoidal"`` (even
            columns ``sin(pos / 10000^(2i/d))``, odd ones the cosine; no parameter).
        num_behaviors: ``M``.
        max_length: longest sequence that can come.
        embed_dim: ``d``.
    """

    def __init__(
        self,
        kind: Literal["learned", "sinusoidal"],
        num_behaviors: int,
        max_length: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        if kind not in ("learned", "sinusoidal"):
            raise bad("kind", "'learned' or 'sinusoidal'", repr(kind))
        self.kind = kind
        self.max_length = max_length
        if kind == "learned":
            self.weight = nn.Parameter(torch.empty(num_behaviors, max_length, embed_dim))
            nn.init.normal_(self.weight, std=0.01)
        else:
            self.register_constant("table", lambda: _sinusoids(max_length, embed_dim))
            self.table: Tensor

    def forward(self, sequences: JaggedSequences) -> JaggedSequences:
        """The same sequences with ``values [N, d]`` plus their positions' vectors.

        Raises:
            ValueError: when ``sequences.max_len`` exceeds ``max_length``.
        """
        if sequences.max_len > self.max_length:
            raise bad(
                "sequences", f"max_len of at most {self.max_length} (positions)", sequences.max_len
            )
        segment = sequences.segment_ids()
        rows = torch.arange(segment.shape[0], device=segment.device)
        # Clamped, so that wrong offsets stay the op's to report.
        position = (rows - sequences.offsets[segment]).clamp(0, self.max_length - 1)
        if self.kind == "sinusoidal":
            return sequences.with_values(sequences.values + self.table[position])
        behavior = segment // max(sequences.num_users, 1)
        index = behavior * self.max_length + position
        added = nn.functional.embedding(index, self.weight.flatten(0, 1))
        return sequences.with_values(sequences.values + added)


def _sinusoids(length: int, dim: int) -> Tensor:
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    column = torch.arange(dim, dtype=torch.float64)
    angle = position / 10000.0 ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()
