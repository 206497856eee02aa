"""Whole models, from ids to one logit per task."""

from mtlfast.models.dtrn import DTRN, DTRNConfig, DTRNOutput
from mtlfast.models.loss import task_losses
from mtlfast.models.registry import ModelEntry, available, build
from mtlfast.models.spec import DataSpec, Sizes

__all__ = [
    "DTRN",
    "DTRNConfig",
    "DTRNOutput",
    "DataSpec",
    "ModelEntry",
    "Sizes",
    "available",
    "build",
    "task_losses",
]
