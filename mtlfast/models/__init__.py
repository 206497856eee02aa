"""Whole models, from ids to one logit per task."""

from mtlfast.models.dtn import DTN, DTNConfig, DTNOutput, ModuleKey
from mtlfast.models.dtn_trim import gate_usage, trim
from mtlfast.models.dtrn import DTRN, DTRNConfig, DTRNOutput
from mtlfast.models.field_model import FieldModel, FieldModelConfig
from mtlfast.models.loss import task_losses
from mtlfast.models.memonet import MemoNet, MemoNetModelConfig
from mtlfast.models.registry import ModelEntry, available, build
from mtlfast.models.sequence_model import SequenceModel, SequenceModelConfig
from mtlfast.models.sfm import MTL, SFM, MTLConfig, SFMConfig
from mtlfast.models.spec import DataSpec, Sizes
from mtlfast.models.tfi import TFI, TFIConfig, TFIOutput

__all__ = [
    "DTN",
    "DTRN",
    "MTL",
    "SFM",
    "TFI",
    "DTNConfig",
    "DTNOutput",
    "DTRNConfig",
    "DTRNOutput",
    "DataSpec",
    "FieldModel",
    "FieldModelConfig",
    "MTLConfig",
    "MemoNet",
    "MemoNetModelConfig",
    "ModelEntry",
    "ModuleKey",
    "SFMConfig",
    "SequenceModel",
    "SequenceModelConfig",
    "Sizes",
    "TFIConfig",
    "TFIOutput",
    "available",
    "build",
    "gate_usage",
    "task_losses",
    "trim",
]
