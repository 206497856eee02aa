"""Modules built on the ops: embeddings, DTRN's conditional transformer, MemoNet's codebook."""

from mtlfast.nn.codebook_optimizer import FusedAdagrad, FusedAdam
from mtlfast.nn.conditional_transformer import ConditionalTransformer, InterestFunction
from mtlfast.nn.feature_embedding import EmbeddedFeatures, FeatureEmbedding
from mtlfast.nn.field_embedding import FieldEmbedding
from mtlfast.nn.hypernetwork import LayerNormHypernetwork
from mtlfast.nn.injected_transformer import InjectedTransformer
from mtlfast.nn.multi_hash_codebook import MultiHashCodebook
from mtlfast.nn.separate_transformers import SeparateTransformers
from mtlfast.nn.stacked import StackedMLP, stacked_linear
from mtlfast.nn.task_specific_interest import TaskSpecificInterest
from mtlfast.nn.task_specific_refinement import TaskSpecificRefinement

__all__ = [
    "ConditionalTransformer",
    "EmbeddedFeatures",
    "FeatureEmbedding",
    "FieldEmbedding",
    "FusedAdagrad",
    "FusedAdam",
    "InjectedTransformer",
    "InterestFunction",
    "LayerNormHypernetwork",
    "MultiHashCodebook",
    "SeparateTransformers",
    "StackedMLP",
    "TaskSpecificInterest",
    "TaskSpecificRefinement",
    "stacked_linear",
]
