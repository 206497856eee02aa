"""Every op in plain PyTorch: the definition, in any floating dtype and on any device.

The same names and signatures as :mod:`mtlfast.ops`, without ``backend`` and ``fused_step``.
"""

from .conditional_interest import (
    ConditionalTransformerWeights,
    TransformerWeights,
    conditional_interest,
)
from .conditional_layer_norm import conditional_layer_norm
from .gated_cross import gated_cross
from .multi_hash_lookup import field_crosses, multi_hash_indices, multi_hash_lookup
from .stacked_linear import stacked_linear

__all__ = [
    "ConditionalTransformerWeights",
    "TransformerWeights",
    "conditional_interest",
    "conditional_layer_norm",
    "field_crosses",
    "gated_cross",
    "multi_hash_indices",
    "multi_hash_lookup",
    "stacked_linear",
]
