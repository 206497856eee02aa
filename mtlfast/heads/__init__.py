"""Multi-task heads: logits of T tasks from one representation per task, or from one for all."""

from mtlfast.heads.aitm import AITM, calibration_penalty
from mtlfast.heads.base import MultiTaskHead
from mtlfast.heads.config import (
    HEAD_CONFIGS,
    AITMConfig,
    ESMMConfig,
    HeadConfig,
    M2MConfig,
    MMoEConfig,
    PLEConfig,
    ShareBottomConfig,
    SingleTaskConfig,
    SmallHeadsConfig,
)
from mtlfast.heads.esmm import ESMM
from mtlfast.heads.m2m import M2M
from mtlfast.heads.mmoe import MMoE
from mtlfast.heads.ple import PLE
from mtlfast.heads.share_bottom import ShareBottom
from mtlfast.heads.single_task import SingleTask
from mtlfast.heads.towers import Towers

__all__ = [
    "AITM",
    "ESMM",
    "HEAD_CONFIGS",
    "M2M",
    "PLE",
    "AITMConfig",
    "ESMMConfig",
    "HeadConfig",
    "M2MConfig",
    "MMoE",
    "MMoEConfig",
    "MultiTaskHead",
    "PLEConfig",
    "ShareBottom",
    "ShareBottomConfig",
    "SingleTask",
    "SingleTaskConfig",
    "SmallHeadsConfig",
    "Towers",
    "calibration_penalty",
]
