"""Feature interactions: from the embeddings of all fields to one vector.

Every method can be built as one module or as several independent ones that are computed together.
"""

from mtlfast.interactions.attention import FieldAttention
from mtlfast.interactions.base import Interaction
from mtlfast.interactions.bilinear import BilinearInteraction
from mtlfast.interactions.cin import CompressedInteraction
from mtlfast.interactions.config import (
    INTERACTION_CONFIGS,
    AttentionConfig,
    BilinearConfig,
    DCNConfig,
    DCNMConfig,
    DCNMixConfig,
    DeepFMConfig,
    DHENConfig,
    FiBiNETConfig,
    FieldSizes,
    FMConfig,
    GDCNConfig,
    InteractionConfig,
    MaskNetConfig,
    MemoNetConfig,
    MLPConfig,
    SENetConfig,
    XDeepFMConfig,
)
from mtlfast.interactions.dcn import CrossNetwork
from mtlfast.interactions.dcn_m import CrossNetworkMix, CrossNetworkV2
from mtlfast.interactions.deepfm import DeepFM
from mtlfast.interactions.dhen import DHEN
from mtlfast.interactions.fibinet import FiBiNET
from mtlfast.interactions.fm import FactorizationMachine, fm_vector
from mtlfast.interactions.gdcn import GatedCrossNetwork
from mtlfast.interactions.masknet import MaskNet
from mtlfast.interactions.memonet import MemoNetInteraction
from mtlfast.interactions.mlp import DeepInteraction
from mtlfast.interactions.projection import ProjectedInteraction
from mtlfast.interactions.senet import SqueezeExcitation
from mtlfast.interactions.xdeepfm import XDeepFM

__all__ = [
    "DHEN",
    "INTERACTION_CONFIGS",
    "AttentionConfig",
    "BilinearConfig",
    "BilinearInteraction",
    "CompressedInteraction",
    "CrossNetwork",
    "CrossNetworkMix",
    "CrossNetworkV2",
    "DCNConfig",
    "DCNMConfig",
    "DCNMixConfig",
    "DHENConfig",
    "DeepFM",
    "DeepFMConfig",
    "DeepInteraction",
    "FMConfig",
    "FactorizationMachine",
    "FiBiNET",
    "FiBiNETConfig",
    "FieldAttention",
    "FieldSizes",
    "GDCNConfig",
    "GatedCrossNetwork",
    "Interaction",
    "InteractionConfig",
    "MLPConfig",
    "MaskNet",
    "MaskNetConfig",
    "MemoNetConfig",
    "MemoNetInteraction",
    "ProjectedInteraction",
    "SENetConfig",
    "SqueezeExcitation",
    "XDeepFM",
    "XDeepFMConfig",
    "fm_vector",
]
