"""Launch configurations: one table, no tuning at run time. Knows nothing of triton.

Chosen by (padded d, dtype, direction) so that nothing spills on compute capabilities 8.0, 9.0 and
10.0. Ragged lengths never enter: a batch of other lengths runs the same compiled kernels.
"""

from __future__ import annotations

from typing import NamedTuple

from .layout import Layout


class Launch(NamedTuple):
    """Tile sides and options of one kernel; not every kernel uses all of them."""

    rows: int  # rows of the tile
    other: int = 0  # keys, queries, pairs (candidate, head) or features in an inner loop
    hidden: int = 0  # hidden units per block of the FFN
    warps: int = 4
    stages: int = 2


class Config(NamedTuple):
    project: Launch
    attention: Launch
    queries: Launch
    encoder: Launch
    tail: Launch
    tail_output_backward: Launch
    tail_input_backward: Launch
    weights_backward: Launch
    encoder_output_backward: Launch
    encoder_input_backward: Launch
    project_backward: Launch
    attention_queries_backward: Launch
    attention_keys_backward: Launch
    tokens_backward: Launch
    queries_backward: Launch


def config(layout: Layout, dtype: str, capability: int) -> Config:
    """The table. ``dtype`` is that of the products: "float32", "bfloat16" or "float16"."""
    pairs = max(32 if layout.dp <= 32 else 64, layout.hp)
    hidden = min(64 if layout.dp <= 64 else 32, layout.fp)
    warps = 8 if layout.dp >= 128 else 4
    return Config(
        project=Launch(64, warps=4),
        attention=Launch(64, 32, warps=4),
        queries=Launch(64, warps=4),
        encoder=Launch(64, pairs, hidden, warps, 1),
        tail=Launch(64, 0, hidden, warps, 1),
        tail_output_backward=Launch(64, 0, hidden, warps, 1),
        tail_input_backward=Launch(64, 0, hidden, warps, 1),
        weights_backward=Launch(64, 0, hidden, warps, 1),
        encoder_output_backward=Launch(64, pairs, hidden, warps, 1),
        encoder_input_backward=Launch(64, 0, hidden, warps, 1),
        project_backward=Launch(64, warps=4),
        attention_queries_backward=Launch(64, 32, warps=4),
        attention_keys_backward=Launch(64, 32, warps=4),
        tokens_backward=Launch(64, 64, warps=4, stages=1),
        queries_backward=Launch(64, warps=4, stages=1),
    )
