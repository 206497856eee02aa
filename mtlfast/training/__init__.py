"""Training and evaluation: configs, the loop, optimizers, metrics, checkpoints.

Names are imported when they are first used, so that reading a config needs neither Lightning nor
torchmetrics.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "CheckpointError": "checkpoint",
    "Interrupted": "loop",
    "LogLoss": "metrics",
    "RowwiseAdagrad": "optimizers",
    "RowwiseAdam": "optimizers",
    "TaskMetrics": "metrics",
    "TrainConfig": "config",
    "Trainer": "loop",
    "build_optimizers": "optimizers",
    "evaluate": "evaluation",
    "load_checkpoint": "checkpoint",
    "load_model": "assemble",
    "resume_training": "assemble",
    "save_checkpoint": "checkpoint",
    "start_training": "assemble",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"mtlfast.training.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mtlfast.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
