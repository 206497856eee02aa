"""Encoders of ragged behavior sequences: those DTRN is compared with, and positions."""

from mtlfast.sequence.attention import BST, DFN, ATRank
from mtlfast.sequence.base import SequenceEncoder
from mtlfast.sequence.config import (
    ENCODER_CONFIGS,
    ATRankConfig,
    BSTConfig,
    DFNConfig,
    DIENConfig,
    DINConfig,
    DMTConfig,
    EncoderConfig,
    YouTubeNetConfig,
)
from mtlfast.sequence.dien import DIEN, AttentionGRUCell
from mtlfast.sequence.dmt import DMT
from mtlfast.sequence.pooling import DIN, Dice, MeanPooling
from mtlfast.sequence.position import POSITION_KINDS, JaggedPositionEncoding, PositionKind

__all__ = [
    "BST",
    "DFN",
    "DIEN",
    "DIN",
    "DMT",
    "ENCODER_CONFIGS",
    "POSITION_KINDS",
    "ATRank",
    "ATRankConfig",
    "AttentionGRUCell",
    "BSTConfig",
    "DFNConfig",
    "DIENConfig",
    "DINConfig",
    "DMTConfig",
    "Dice",
    "EncoderConfig",
    "JaggedPositionEncoding",
    "MeanPooling",
    "PositionKind",
    "SequenceEncoder",
    "YouTubeNetConfig",
]
