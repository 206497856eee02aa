"""Multi-task heads: logits of T tasks from one representation per task, or from one for all."""

from mtlfast.heads.aitm import AITM, calibration_penalty
from mtlfast.heads.base import MultiTaskHead
from mtlfast.heads.config import (
    HEAD_CONFIGS,
    AITMConfig,
    ESMMConfig,
    HeadConfig,
    MMoEConfig,
    PLEConfig,
    ShareBottomConfig,
    SingleTaskConfig,
)
from mtlfast.heads.esmm import ESMM
from mtlfast.heads.mmoe import MMoE
from mtlfast.heads.ple import PLE
from mtlfast.heads.share_bottom import ShareBottom
from mtlfast.heads.single_task import SingleTask
from mtlfast.heads.towers import Towers

__all__ = [
    "AITM",
    "ESMM",
    "HEAD_CONFIGS",
    "PLE",
    "AITMConfig",
    "ESMMConfig",
    "HeadConfig",
    "MMoE",
    "MMoEConfig",
    "MultiTaskHead",
    "PLEConfig",
    "ShareBottom",
    "ShareBottomConfig",
    "SingleTask",
    "SingleTaskConfig",
    "Towers",
    "calibration_penalty",
]
