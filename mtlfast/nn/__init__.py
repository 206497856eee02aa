"""Modules built on the ops: embedding layer, conditional transformer, TIM and TRM of DTRN."""

from mtlfast.nn.conditional_transformer import ConditionalTransformer, InterestFunction
from mtlfast.nn.feature_embedding import EmbeddedFeatures, FeatureEmbedding
from mtlfast.nn.hypernetwork import LayerNormHypernetwork
from mtlfast.nn.task_specific_interest import TaskSpecificInterest
from mtlfast.nn.task_specific_refinement import TaskSpecificRefinement

__all__ = [
    "ConditionalTransformer",
    "EmbeddedFeatures",
    "FeatureEmbedding",
    "InterestFunction",
    "LayerNormHypernetwork",
    "TaskSpecificInterest",
    "TaskSpecificRefinement",
]
