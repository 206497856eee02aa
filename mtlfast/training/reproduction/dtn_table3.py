"""The Census-Income columns of DTN's Table 3 (arXiv 2408.11611), with equal parameter budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mtlfast import models
from mtlfast.data import DatasetSpec
from mtlfast.training.reproduction.fit import Recipe

__all__ = ["BUDGET", "ROWS", "TRIMMED", "Row", "build_row", "parameters", "width_within"]

Options = Mapping[str, Any]

BUDGET = 554_708
_EMBED_DIM = 4
_HEADS_EMBED_DIM = 8
_CODEWORDS = 5_000
# Within DTN: crosses of so few fields are remembered too well by a large codebook, and GDCN's two
# layers of D_x^2 weights in each of the three groups would leave MaskNet little of the budget.
_DTN_CODEWORDS = 1_000
_DTN_CROSS_LAYERS = 1
_DTN_MASK_WIDTH = 23 / 8  # times D_o
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
        own: what its recipe has other than :class:`Recipe`'s defaults.
    """

    name: str
    model: str
    options: Callable[[int], Options]
    published: tuple[float, float] | None = None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return replace(Recipe(), **self.own)


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
        head = {"name": name, **{key: value(units) for key, value in options.items()}}
        return {"embed_dim": _HEADS_EMBED_DIM, "head": head}

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
    mask = int(_DTN_MASK_WIDTH * width)
    # The two tasks are no funnel: neither waits for the other.
    return {
        "interactions": [
            {**_masknet(width), "block_units": [mask], "agg_dim": mask},
            {**_memonet(width), "num_codewords": _DTN_CODEWORDS},
            {**_gdcn(width), "num_layers": _DTN_CROSS_LAYERS},
        ],
        "output_dim": width,
        "dependencies": "none",
        "tower_units": [64],
    }


# The best of equally many trials of ShareBottom and of DTN on held-out rows; MMoE and PLE, without
# interactions as ShareBottom, take its choice. The recipe of all others is the default.
_HEADS_OWN = {"learning_rate": 3e-3}
_DTN_OWN = {"learning_rate": 1.5e-3, "epochs": 4}
_mmoe = _head("mmoe", expert_units=list)
_ple = _head("ple", expert_units=lambda units: [units])

ROWS: tuple[Row, ...] = (
    Row(BASE, "mtl", _head("share_bottom", bottom_units=list), (0.9361, 0.9915), _HEADS_OWN),
    Row("MMoE", "mtl", _mmoe, (0.9410, 0.9926), _HEADS_OWN),
    Row("PLE", "mtl", _ple, (0.9521, 0.9945), _HEADS_OWN),
    *(Row(f"SFM-{name}", "sfm", _sfm(method)) for name, method in METHODS.items()),
    *(Row(f"TFI-{name}", "tfi", _tfi(method)) for name, method in METHODS.items()),
    Row(DTN, "dtn", _dtn, (0.9560, 0.9952), _DTN_OWN),
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
