"""Baselines of ``mtlfast.ops.conditional_interest``, same signature without ``backend``.

``naive``, ``batched`` and ``repeated`` also take :class:`Padded` in place of ``JaggedSequences``,
so that code which pads in its data loader is not charged for padding.
"""

from __future__ import annotations

from .batched import batched, repeated
from .common import Padded, pad
from .compiled import compiled_batched, compiled_ragged
from .flat import ragged_flat
from .naive import naive
from .ragged import make_plan, ragged

__all__ = [
    "Padded",
    "batched",
    "compiled_batched",
    "compiled_ragged",
    "make_plan",
    "naive",
    "pad",
    "ragged",
    "ragged_flat",
    "repeated",
]
