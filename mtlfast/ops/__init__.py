"""The public ops. Definitions are in :mod:`mtlfast.reference`."""

from ..reference import ConditionalTransformerWeights, TransformerWeights, field_crosses
from ._backend import Explanation, checks, explain
from .conditional_interest import conditional_interest
from .conditional_layer_norm import conditional_layer_norm
from .gated_cross import gated_cross
from .multi_hash_lookup import FusedStep, multi_hash_indices, multi_hash_lookup
from .stacked_linear import stacked_linear

__all__ = [
    "ConditionalTransformerWeights",
    "Explanation",
    "FusedStep",
    "TransformerWeights",
    "checks",
    "conditional_interest",
    "conditional_layer_norm",
    "explain",
    "field_crosses",
    "gated_cross",
    "multi_hash_indices",
    "multi_hash_lookup",
    "stacked_linear",
]
