"""Multi-task heads: logits of T tasks from one representation per task, or from one for all."""

from mtlfast.heads.aitm import AITM, calibration_penalty
from mtlfast.heads.base import MultiTaskHead
from mtlfast.heads.config import (
    HEAD_CONFIGS,
    AITMConfig,
    HeadConfig,
    MMoEConfig,
    PLEConfig,
    ShareBottomConfig,
)
from mtlfast.heads.mmoe import MMoE
from mtlfast.heads.ple import PLE
from mtlfast.heads.share_bottom import ShareBottom

__all__ = [
    "AITM",
    "HEAD_CONFIGS",
    "PLE",
    "AITMConfig",
    "HeadConfig",
    "MMoE",
    "MMoEConfig",
    "MultiTaskHead",
    "PLEConfig",
    "ShareBottom",
    "ShareBottomConfig",
    "calibration_penalty",
]
