"""The models by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mtlfast.errors import bad
from mtlfast.models.dtn import DTN, DTNConfig
from mtlfast.models.dtrn import DTRN, DTRNConfig
from mtlfast.models.memonet import MemoNet, MemoNetModelConfig
from mtlfast.models.sequence_model import SequenceModel, SequenceModelConfig
from mtlfast.models.sfm import MTL, SFM, MTLConfig, SFMConfig
from mtlfast.models.spec import DataSpec
from mtlfast.models.tfi import TFI, TFIConfig
from mtlfast.nn import InterestFunction


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry."""

    name: str
    description: str
    paper: str
    model_class: type[nn.Module]
    config_class: type[Any]


_DTN_PAPER = (
    "DTN: Deep Multiple Task-specific Feature Interactions Network for Multi-Task "
    "Recommendation, arXiv 2408.11611"
)

_ENTRIES = (
    ModelEntry(
        "dtrn",
        "one interest per task and behavior by a conditional transformer, refined per task",
        "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation, CIKM 2023",
        DTRN,
        DTRNConfig,
    ),
    ModelEntry(
        "dtn",
        "interaction modules per task and shared ones, gates over them, a graph of tasks",
        _DTN_PAPER,
        DTN,
        DTNConfig,
    ),
    ModelEntry(
        "tfi",
        "CGC with interaction modules of one method as experts",
        _DTN_PAPER,
        TFI,
        TFIConfig,
    ),
    ModelEntry(
        "sfm",
        "one shared set of interaction modules, then a multi-task head",
        _DTN_PAPER,
        SFM,
        SFMConfig,
    ),
    ModelEntry(
        "mtl",
        "a multi-task head on the embedded fields; head.name chooses which",
        "the baselines of both papers: ShareBottom, MMoE, PLE, AITM, ESMM, M2M, SmallHeads, "
        "SingleTask",
        MTL,
        MTLConfig,
    ),
    ModelEntry(
        "sequence",
        "a sequence encoder and a multi-task head; encoder.name and head.name choose which",
        "what DTRN is compared with: YouTubeNet, DIN, DIEN, BST, ATRank, DFN, DMT as released",
        SequenceModel,
        SequenceModelConfig,
    ),
    ModelEntry(
        "memonet",
        "an MLP on the fields and on a codebook's memories of their crosses",
        "MemoNet: Memorizing All Cross Features' Representations Efficiently via Multi-Hash "
        "Codebook Network for CTR Prediction, CIKM 2023",
        MemoNet,
        MemoNetModelConfig,
    ),
)


def available() -> dict[str, ModelEntry]:
    """Every model by name."""
    return {entry.name: entry for entry in _ENTRIES}


def build(
    name: str,
    spec: DataSpec,
    config: Any = None,
    *,
    backend: str | InterestFunction | None = None,
) -> nn.Module:
    """A model with fresh weights.

    Args:
        name: a key of :func:`available`.
        spec: sizes of the data.
        config: the model's config or plain values for it; the defaults when None.
        backend: overrides the config's.

    Raises:
        ValueError: for an unknown name, or naming the wrong field of the config.
    """
    entries = available()
    if name not in entries:
        raise bad("name", f"one of {list(entries)}", repr(name))
    entry = entries[name]
    if config is None or isinstance(config, Mapping):
        config = entry.config_class.from_dict(config or {}, name)
    if not isinstance(config, entry.config_class):
        raise bad("config", f"a {entry.config_class.__name__} or a mapping", type(config).__name__)
    return entry.model_class(spec, config, backend=backend)
