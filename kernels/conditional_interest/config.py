"""Launch configurations: one table, no tuning at run time. Knows nothing of triton.

Chosen by (padded d, dtype, direction) so that nothing spills on compute capabilities 8.0, 9.0 and
10.0 with Triton 3.7, and on 9.0 with 3.6 too. Ragged lengths never enter: a batch of other lengths
runs the same compiled kernels.

``weights_backward`` takes as many hidden units as fit: the programs of one block of units share the
rows among them, so that half as many units mean twice as many blocks, half as many programs for
each, and twice the tiles that every program takes one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .layout import Layout


class Launch(NamedTuple):
    """Tile sides and options of one kernel; not every kernel uses all of them."""

    rows: int  # rows of the tile
    other: int = 0  # keys, queries, pairs (candidate, head) or features in an inner loop
    hidden: int = 0  # hidden units per block of the FFN
    warps: int = 4
    stages: int = 1
    columns: int = 0  # of wide rows in a product at once; 0: all


class Config(NamedTuple):
    project: Launch
    attention: Launch
    queries: Launch
    encoder: Launch
    tail: Launch
    tail_output_backward: Launch
    tail_input_backward: Launch
    tail_values_backward: Launch
    weights_backward: Launch
    encoder_ahead: Launch  # no rows: encoder_output_backward does it itself
    encoder_output_backward: Launch
    encoder_input_backward: Launch
    project_backward: Launch
    attention_queries_backward: Launch
    attention_keys_backward: Launch
    tokens_backward: Launch
    queries_backward: Launch


_USUAL = Config(
    project=Launch(64),
    attention=Launch(64, 32),
    queries=Launch(64),
    encoder=Launch(64, 32, 32, 8),
    tail=Launch(64, 0, 32, 8),
    tail_output_backward=Launch(64, 0, 32, 8),
    tail_input_backward=Launch(64, 0, 32, 8),
    tail_values_backward=Launch(64, 0, 0, 8),
    weights_backward=Launch(64, 0, 32, 8),
    encoder_ahead=Launch(0),
    encoder_output_backward=Launch(64, 32, 32, 8),
    encoder_input_backward=Launch(64, 0, 32, 8),
    project_backward=Launch(64),
    attention_queries_backward=Launch(64, 32),
    attention_keys_backward=Launch(64, 32),
    tokens_backward=Launch(64, 32, 0, 8),
    queries_backward=Launch(64, 0, 0, 8),
)
# (padded d, whether products are 16 bits wide) -> what differs from _USUAL.
_TABLE: dict[tuple[int, bool], dict[str, Launch]] = {
    (16, True): {
        "encoder": Launch(128, 32, 64, 8),
        "tail": Launch(128, 0, 64, 8),
        "tail_output_backward": Launch(128, 0, 64, 8),
        "tail_input_backward": Launch(128, 0, 64, 8),
        "tail_values_backward": Launch(32),
        "weights_backward": Launch(64, 0, 64),
        "encoder_output_backward": Launch(128, 32, 64, 8),
        "encoder_input_backward": Launch(128, 0, 64, 8),
        "tokens_backward": Launch(64, 64),
        "queries_backward": Launch(64),
    },
    (32, True): {
        "encoder": Launch(64, 32, 64),
        "tail": Launch(128, 0, 64, 8),
        "tail_output_backward": Launch(128, 0, 64, 8),
        "tail_input_backward": Launch(128, 0, 64, 8),
        "tail_values_backward": Launch(64),
        "weights_backward": Launch(64, 0, 64),
        "encoder_output_backward": Launch(64, 16, 64),
        "encoder_input_backward": Launch(128, 0, 64, 8),
        "tokens_backward": Launch(64, 64),
    },
    (64, True): {
        "encoder": Launch(32, 64, 32),
        "tail": Launch(64, 0, 16, 8),
        "tail_output_backward": Launch(64, 0, 16, 8),
        "tail_input_backward": Launch(64, 0, 32, 8),
        "weights_backward": Launch(64, 0, 64, 8),
        "encoder_output_backward": Launch(32, 32, 16, 8),
    },
    (16, False): {
        "tail_output_backward": Launch(32, 0, 32, 8),
        "tail_values_backward": Launch(32, 0, 0, 8),
        "project_backward": Launch(64, 0, 0, 8),
        "attention_queries_backward": Launch(64, 32, 0, 8),
        "tokens_backward": Launch(64, 64, 0, 8),
        "queries_backward": Launch(64),
    },
    (32, False): {
        # As encoder_output_backward, so that large scores round alike in both directions.
        "encoder": Launch(32, 32, 32, 8),
        "tail_input_backward": Launch(32, 0, 32, 8),
        "tail_values_backward": Launch(32, 0, 0, 8),
        "encoder_output_backward": Launch(32, 32, 32, 8),
        "encoder_input_backward": Launch(32, 0, 32, 8),
        "attention_queries_backward": Launch(64, 32, 0, 8),
        "tokens_backward": Launch(32, 32, 0, 8),
        "queries_backward": Launch(64),
    },
    (64, False): {
        "encoder": Launch(32, 32, 32, 8),
        "tail": Launch(32, 0, 32, 8),
        "tail_input_backward": Launch(32, 0, 32, 8),
        "tail_values_backward": Launch(32, 0, 0, 8),
        "encoder_output_backward": Launch(16, 16, 32, 8),
        "encoder_input_backward": Launch(32, 0, 32, 8),
        "project_backward": Launch(64, 0, 0, 8),
        "tokens_backward": Launch(32, 32, 0, 8),
    },
    (128, True): {
        "project": Launch(64, 0, 0, 8),
        "attention": Launch(32, 32, 0, 8),
        "queries": Launch(32, 0, 0, 8),
        "encoder": Launch(64, 16, 32, 8),
        "tail_output_backward": Launch(32, 0, 32, 8),
        "tail_input_backward": Launch(32, 0, 32, 8),
        "tail_values_backward": Launch(32, 0, 0, 8),
        "weights_backward": Launch(16, 0, 64, 8),
        "encoder_ahead": Launch(64, 0, 32, 8),
        "encoder_output_backward": Launch(16, 16, 0, 8, 1, 64),
        "encoder_input_backward": Launch(32, 0, 32, 8),
        "project_backward": Launch(64, 0, 0, 8),
        "attention_queries_backward": Launch(32, 32, 0, 8),
        "attention_keys_backward": Launch(32, 32, 0, 8),
        "tokens_backward": Launch(32, 16, 0, 8),
        "queries_backward": Launch(32, 0, 0, 8, 1, 64),
    },
    (128, False): {
        "project": Launch(32, 0, 0, 8, 1, 32),
        "attention": Launch(32, 32, 0, 8),
        "queries": Launch(32, 0, 0, 8),
        "encoder": Launch(32, 32, 32, 8, 1, 32),
        "tail": Launch(16, 0, 16, 8),
        "tail_output_backward": Launch(16, 0, 16, 8),
        "tail_input_backward": Launch(32, 0, 32, 8, 1, 32),
        "tail_values_backward": Launch(16, 0, 0, 8),
        "weights_backward": Launch(16, 0, 32, 8, 1, 32),
        "encoder_ahead": Launch(32, 0, 32, 8, 1, 32),
        "encoder_output_backward": Launch(16, 16, 0, 8, 1, 32),
        "encoder_input_backward": Launch(16, 0, 32, 8, 1, 16),
        "project_backward": Launch(32, 0, 0, 8, 1, 32),
        "attention_queries_backward": Launch(32, 32, 0, 8),
        "attention_keys_backward": Launch(32, 32, 0, 8),
        "tokens_backward": Launch(16, 16, 0, 8),
        "queries_backward": Launch(16, 0, 0, 8, 1, 32),
    },
}
# The same for compute capabilities below 9.0, whose products keep more in registers.
_BEFORE_90: dict[tuple[int, bool], dict[str, Launch]] = {
    (32, True): {
        "attention": Launch(64, 32, 0, 8),
        "weights_backward": Launch(64, 0, 16, 8),
        "encoder_output_backward": Launch(16, 16, 64, 2),
    },
    (64, True): {"weights_backward": Launch(32, 0, 32)},
    (128, True): {
        "attention": Launch(64, 32, 0, 8),
        "encoder": Launch(16, 16, 16, 8),
        "weights_backward": Launch(16, 0, 16, 8),
    },
}
# float32 with TF32 products, on tensor cores: what differs from exact ones. By padded d; with 128
# too much would spill, so products stay exact there.
_TF32: dict[int, dict[str, Launch]] = {
    16: {
        "tail_input_backward": Launch(64, 0, 32),
        "tail_values_backward": Launch(32),
        "encoder_output_backward": Launch(64, 16, 32, 8),
        "attention_queries_backward": Launch(64, 32),
    },
    32: {
        "weights_backward": Launch(64, 0, 16, 8),
        "encoder_output_backward": Launch(16, 32, 32, 8),
        "attention_queries_backward": Launch(64, 32),
    },
    64: {
        "queries": Launch(64, 0, 0, 8),
        "tail_output_backward": Launch(32, 0, 32, 8),
        "weights_backward": Launch(32, 0, 32, 8),
        "encoder_output_backward": Launch(16, 16, 32),
        "tokens_backward": Launch(32, 32),
    },
}
_TF32_BEFORE_90: dict[int, dict[str, Launch]] = {
    64: {
        "encoder": Launch(32, 32, 16, 8),
        "tail_output_backward": Launch(32, 0, 16, 8),
        "encoder_ahead": Launch(32, 0, 32, 8),
        "encoder_output_backward": Launch(16, 16, 0, 8),
    },
}
MAX_TF32_D = max(_TF32)


def config(
    layout: Layout, products: str, capability: int, launches: Mapping[str, Launch] | None = None
) -> Config:
    """The table. ``products`` are computed in "float32", "tf32", "bfloat16" or "float16".

    ``capability`` is the compute capability times ten. ``launches``, by their names in the table,
    replace what it says.
    """
    key = layout.dp, products not in ("float32", "tf32")
    found = _USUAL._replace(**_TABLE[key])
    if capability < 90:
        found = found._replace(**_BEFORE_90.get(key, {}))
    if products == "tf32":
        found = found._replace(**_TF32[layout.dp])
        if capability < 90:
            found = found._replace(**_TF32_BEFORE_90.get(layout.dp, {}))
    found = found._replace(**(launches or {}))
    fitted = (
        launch._replace(hidden=min(launch.hidden, layout.fp), columns=launch.columns or layout.dp)
        for launch in found
    )
    found = Config(*fitted)
    pairs = {
        name: getattr(found, name)._replace(other=max(getattr(found, name).other, layout.hp))
        for name in ("encoder", "encoder_output_backward")
    }
    return found._replace(**pairs)
