"""The Census-Income columns of DTN's Table 3 (arXiv 2408.11611), with equal parameter budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mtlfast import models
from mtlfast.data import DatasetSpec

__all__ = ["ROWS", "TRIMMED", "Row", "build_row", "parameters", "width_within"]

Options = Mapping[str, Any]

_EMBED_DIM = 4
_CODEWORDS = 5_000
_CODEWORD_STD = 1e-3
DTN = "DTN"
TRIMMED = "DTN-trim"
BASE = "ShareBottom"


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        name: as in the paper.
        model: name in the registry.
        options: of the model, from the width that fits the budget.
        published: the paper's AUC of income and of marital status; None where it has no such row.
    """

    name: str
    model: str
    options: Callable[[int], Options]
    published: tuple[float, float] | None = None


def _masknet(width: int) -> Options:
    return {"name": "masknet", "block_units": [width], "agg_dim": width}


def _memonet(width: int) -> Options:
    return {
        "name": "memonet",
        "num_codewords": _CODEWORDS,
        "largest_fields": 8,
        "init_std": _CODEWORD_STD,
    }


def _gdcn(width: int) -> Options:
    return {"name": "gdcn"}


METHODS = {"MaskNet": _masknet, "MemoNet": _memonet, "GDCN": _gdcn}


def _head(name: str, **options: Any) -> Callable[[int], Options]:
    def make(width: int) -> Options:
        units = [width, max(width // 2, 1)]
        return {"head": {"name": name, **{key: value(units) for key, value in options.items()}}}

    return make


def _sfm(method: Callable[[int], Options]) -> Callable[[int], Options]:
    head = {"name": "ple", "expert_units": [[64]], "tower_units": [64]}
    return lambda width: {"interactions": [method(width)], "output_dim": width, "head": head}


def _tfi(method: Callable[[int], Options]) -> Callable[[int], Options]:
    return lambda width: {
        "interaction": method(width),
        "modules_per_group": 1,
        "output_dim": width,
        "tower_units": [64],
    }


def _dtn(width: int) -> Options:
    # The two tasks are no funnel: neither waits for the other.
    return {
        "interactions": [method(width) for method in METHODS.values()],
        "output_dim": width,
        "dependencies": "none",
        "tower_units": [64],
    }


ROWS: tuple[Row, ...] = (
    Row(BASE, "mtl", _head("share_bottom", bottom_units=list), (0.9361, 0.9915)),
    Row("MMoE", "mtl", _head("mmoe", expert_units=list), (0.9410, 0.9926)),
    Row("PLE", "mtl", _head("ple", expert_units=lambda units: [units]), (0.9521, 0.9945)),
    *(Row(f"SFM-{name}", "sfm", _sfm(method)) for name, method in METHODS.items()),
    *(Row(f"TFI-{name}", "tfi", _tfi(method)) for name, method in METHODS.items()),
    Row(DTN, "dtn", _dtn, (0.9560, 0.9952)),
)


def build_row(row: Row, spec: DatasetSpec, width: int, seed: int = 0) -> Any:
    """The row's model with fresh weights."""
    torch.manual_seed(seed)
    options = {"embed_dim": _EMBED_DIM, **row.options(width)}
    return models.build(row.model, spec, options)


def parameters(model: torch.nn.Module) -> int:
    """Trained numbers of ``model``, tables included."""
    return sum(parameter.numel() for parameter in model.parameters())


def width_within(row: Row, spec: DatasetSpec, budget: int) -> int:
    """The largest width with which the row's model has at most ``budget`` parameters.

    Raises:
        ValueError: if even the narrowest model is larger.
    """

    def fits(width: int) -> bool:
        return parameters(build_row(row, spec, width)) <= budget

    low, high = 4, 8
    if not fits(low):
        raise ValueError(f"budget: expected enough for {row.name}, found {budget}")
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
